"""Answers in blocks, for the APIs that have their own events: a whole, or a stream of these."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from server.http.errors import ErrorReport, log_failure, report_of
from server.narration.blocks import Blocks, Change
from server.openai.answer import open_stream, respond_with
from server.openai.generating import Generation
from server.openai.one_line import encode
from server.openai.piece import Piece


class Narrator(Protocol):
    """One API's words for one answer. usage: `Answer.usage`."""

    def begin(self, usage: dict[str, Any]) -> Iterator[bytes]: ...

    def change(self, change: Change) -> Iterator[bytes]: ...

    def end(self, blocks: Blocks, last: Piece, usage: dict[str, Any]) -> Iterator[bytes]: ...

    def fail(self, report: ErrorReport) -> bytes: ...

    def whole(self, blocks: Blocks, last: Piece, usage: dict[str, Any]) -> dict[str, Any]: ...


async def narrate(
    request: Request, generation: Generation, narrator: Narrator, stream: bool
) -> Response:
    """Answer a request of one choice, whole or as a stream."""
    deltas = generation.deltas
    if stream:
        return await open_stream(request, deltas, _events(generation, narrator))

    def whole() -> Iterator[bytes]:
        piece = yield from generation.answer.whole_piece()
        blocks = Blocks()
        list(blocks.add(piece))
        yield encode(narrator.whole(blocks, piece, generation.answer.usage()))

    return await respond_with(request, deltas, generation.answer, whole)


async def _events(generation: Generation, narrator: Narrator) -> AsyncIterator[bytes]:
    answer, blocks = generation.answer, Blocks()
    piece = None
    try:
        async for delta in generation.deltas:
            first, piece = piece is None, answer.piece(delta)
            if first:
                for event in narrator.begin(answer.usage()):
                    yield event
            for event in _told(narrator, blocks, piece):
                yield event
        assert piece is not None, "a stream has at least the delta that ends it"
        for change in blocks.close():
            for event in narrator.change(change):
                yield event
        for event in narrator.end(blocks, piece, answer.usage()):
            yield event
    except Exception as error:  # the status is sent: an event is all that can still tell
        report = report_of(error)
        log_failure(error, report)
        yield narrator.fail(report)


def _told(narrator: Narrator, blocks: Blocks, piece: Piece) -> Iterator[bytes]:
    for change in blocks.add(piece):
        yield from narrator.change(change)
