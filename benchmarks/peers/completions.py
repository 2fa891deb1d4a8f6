"""Streamed completions of an OpenAI-compatible server on this machine, timed.

As little as possible happens while a load runs, since the server needs the cores: bytes are
collected with the time of the first that belong to a token, and read afterwards.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

HOST = "127.0.0.1"
HEADER_END = b"\r\n\r\n"
EVENT = b"data: "


class BadAnswer(Exception):
    """A server answered with an error, or with fewer tokens than were asked for."""


@dataclass(frozen=True)
class Timing:
    """From sending all requests: seconds to each one's first token, and to the end of all."""

    firsts: list[float]
    seconds: float


async def complete(port: int, model: str, prompts: list[list[int]], max_tokens: int) -> Timing:
    """All prompts at once, a connection each. Raises BadAnswer, OSError."""
    bodies = [json.dumps(_body(model, prompt, max_tokens)).encode() for prompt in prompts]
    started = monotonic()
    answers = await asyncio.gather(*(_post(port, body) for body in bodies))
    seconds = monotonic() - started
    for answer, _ in answers:
        _check(answer, max_tokens)
    return Timing([first - started for _, first in answers], seconds)


def _body(model: str, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _post(port: int, body: bytes) -> tuple[bytes, float]:
    """The whole answer, and when the first event of its stream came."""
    reader, writer = await asyncio.open_connection(HOST, port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + body)
        answer, first = b"", 0.0
        while piece := await reader.read(1 << 16):
            answer += piece
            if not first and EVENT in answer:
                first = monotonic()
        return answer, first
    finally:
        writer.close()


def _check(answer: bytes, max_tokens: int) -> None:
    head, _, body = answer.partition(HEADER_END)
    if head.split(b" ", 2)[1:2] != [b"200"]:
        raise BadAnswer(answer.decode(errors="replace")[:1000])
    if b"chunked" in head.lower():
        body = b"".join(_chunks(body))
    events = [line.removeprefix(EVENT) for line in body.splitlines() if line.startswith(EVENT)]
    usages = [json.loads(event).get("usage") for event in events if event != b"[DONE]"]
    counts = [usage["completion_tokens"] for usage in usages if usage]
    if counts[-1:] != [max_tokens]:
        raise BadAnswer(f"{max_tokens} tokens were asked for, and these came: {counts[-1:]}")


def _chunks(body: bytes) -> Iterator[bytes]:
    """Of HTTP's chunked encoding: a size in hexadecimal, then as many bytes, each with a CRLF."""
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        yield rest[:count]
        body = rest[count + 2 :] if count else b""


async def is_healthy(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except ConnectionRefusedError:
        return False
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        return b" 200 " in await reader.readline()
    finally:
        writer.close()
