"""One request's answer, as it is built from deltas: whole, or as a stream of events."""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from megainfer.engine_client import SequenceRequest
from megainfer.errors import MegaInferError
from megainfer.text_stream import TextDelta, TextStream
from server.connection import ClientGone, EventStream, while_connected
from server.errors import report_of
from server.shapes import Shape

CLIENT_CLOSED_REQUEST = 499  # nobody reads it; it is for a log of accesses
DONE = b"data: [DONE]\n\n"
log = logging.getLogger(__name__)
encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Choice:
    """One sequence of the answer; the first of each prompt's n counts for its cached tokens."""

    index: int
    first_of_prompt: bool
    pieces: list[str] = field(default_factory=list)
    finish_reason: str = ""
    opened: bool = False


class Answer:
    """Collects deltas. `sequences`: the n of the first prompt, then those of the next, ..."""

    def __init__(
        self,
        shape: Shape,
        request_id: str,
        model: str,
        sequences: Sequence[SequenceRequest],
        n: int,
    ) -> None:
        self._shape = shape
        self._choices = {
            sequence.request_id: Choice(index, index % n == 0)
            for index, sequence in enumerate(sequences)
        }
        self._head = {"id": request_id, "created": int(time.time()), "model": model}
        self._prompt_tokens = sum(len(sequence.prompt_ids) for sequence in sequences[::n])
        self._completion_tokens = 0
        self._cached_tokens = 0

    def add(self, delta: TextDelta) -> Choice:
        """Count a delta; the choice to which it belongs."""
        choice = self._choices[delta.request_id]
        self._completion_tokens += len(delta.token_ids)
        if choice.first_of_prompt:
            self._cached_tokens += delta.cached_tokens
        return choice

    def collect(self, delta: TextDelta) -> None:
        """Add a delta to the whole answer."""
        choice = self.add(delta)
        choice.pieces.append(delta.text)
        choice.finish_reason = delta.finish_reason or ""

    def whole(self) -> bytes:
        """The complete answer as JSON."""
        choices = [
            self._shape.choice(choice.index, "".join(choice.pieces), choice.finish_reason)
            for choice in self._choices.values()
        ]
        head = {**self._head, "object": self._shape.whole}
        return encode({**head, "choices": choices, "usage": self.usage()})

    def parts(self, delta: TextDelta) -> list[dict[str, Any]]:
        """Choices of the chunks that this delta makes."""
        choice = self.add(delta)
        piece = self._shape.piece(choice.index, delta)
        opening = None if choice.opened else self._shape.opening(choice.index)
        choice.opened = True
        return [piece] if opening is None else [opening, piece]

    def frame(self, include_usage: bool) -> tuple[bytes, bytes]:
        """What stands before and after a choice in each event of a stream."""
        head = encode({**self._head, "object": self._shape.part})
        usage = b',"usage":null' if include_usage else b""
        return b"data: " + head[:-1] + b',"choices":[', b"]" + usage + b"}\n\n"

    def usage_event(self) -> bytes:
        """The stream's last event but one: no choices, only the counts."""
        head = {**self._head, "object": self._shape.part}
        return b"data: " + encode({**head, "choices": [], "usage": self.usage()}) + b"\n\n"

    def usage(self) -> dict[str, Any]:
        """Tokens so far; each prompt counts once, whatever n is."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }


async def respond(request: Request, deltas: TextStream, answer: Answer) -> Response:
    """Answer when all is there. The client's hanging up aborts its sequences at once."""
    with deltas:
        try:
            await while_connected(request.receive, _collect(deltas, answer))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(answer.whole(), media_type="application/json")


async def respond_streaming(
    request: Request, deltas: TextStream, answer: Answer, include_usage: bool
) -> Response:
    """Answer with events, from the first delta on: an error before it still has its status."""
    try:
        first = await while_connected(request.receive, deltas.__anext__())
    except ClientGone:
        deltas.close()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except BaseException:
        deltas.close()
        raise
    return EventStream(_events(first, deltas, answer, include_usage), deltas)


async def _collect(deltas: TextStream, answer: Answer) -> None:
    async for delta in deltas:
        answer.collect(delta)


async def _events(
    first: TextDelta, deltas: TextStream, answer: Answer, include_usage: bool
) -> AsyncIterator[bytes]:
    before, after = answer.frame(include_usage)
    try:
        for part in answer.parts(first):
            yield before + encode(part) + after
        async for delta in deltas:
            for part in answer.parts(delta):
                yield before + encode(part) + after
        if include_usage:
            yield answer.usage_event()
    except Exception as error:  # the status is sent: an event is all that can still tell
        if not isinstance(error, MegaInferError):
            log.exception("a stream failed")
        yield b"data: " + report_of(error).body() + b"\n\n"
    yield DONE
