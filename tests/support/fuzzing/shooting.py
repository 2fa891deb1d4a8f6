"""Sends shots and looks at what comes back."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.fuzzing.requests import Shot

AT_ONCE = 16
ANSWER_SECONDS = 30.0
"""After which there is none: no request asks for work that takes so long."""
MOST_BYTES = 8 * 2**20
NOTHING = 0


@dataclass
class Tally:
    """statuses: of the answers, NOTHING where none came to what wasn't whole. wrong: what must not
    be. told: all of that in words."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    told: str = ""

    @property
    def shots(self) -> int:
        return self.statuses.total()


async def shoot(url: str, shots: Iterable[Shot], tally: Tally) -> None:
    """All of them, some at once, each on a connection of its own."""
    parts = urlsplit(url)
    waiting = iter(shots)

    async def work() -> None:
        for shot in waiting:
            answer = await _answer(parts.hostname, parts.port, shot)
            _judge(shot, answer, tally)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def _answer(host: str | None, port: int | None, shot: Shot) -> bytes | None:
    """None: the server neither answered nor hung up."""
    answer = b""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        # A server that refuses a request doesn't read it to its end.
        with suppress(ConnectionError):
            writer.write(shot.raw)
            if not shot.answered:
                writer.write_eof()
            async with asyncio.timeout(ANSWER_SECONDS):
                while data := await reader.read(2**16):
                    answer += data
        return answer
    except TimeoutError:
        return None
    finally:
        writer.transport.abort()


def _judge(shot: Shot, answer: bytes | None, tally: Tally) -> None:
    problem = None
    if not answer:
        tally.statuses[NOTHING] += 1
        if answer is None:
            problem = "no answer"
        elif shot.answered:
            problem = "the connection was closed"
    else:
        answer = _final(answer)
        status = int(answer[9:12])
        tally.statuses[status] += 1
        problem = _problem(status, answer)
    if problem is not None:
        tally.wrong.append(f"{problem}: {shot.what}")


def _final(answer: bytes) -> bytes:
    """Without what says that the body may come."""
    while answer.startswith(b"HTTP/1.1 1") and (rest := answer.partition(b"\r\n\r\n")[2]):
        answer = rest
    return answer


def _problem(status: int, answer: bytes) -> str | None:
    if status >= 500 and status != 503:
        return f"answered {status} {answer[-500:]!r}"
    if len(answer) > MOST_BYTES:
        return f"an answer of {len(answer)} bytes"
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"\r\ncontent-type: application/json" in head.lower() and body:
        return _json_problem(body)
    return None


def _json_problem(body: bytes) -> str | None:
    try:
        json.loads(body)
    except ValueError as error:
        return f"what calls itself JSON isn't: {error} in {body[:500]!r}"
    return None
