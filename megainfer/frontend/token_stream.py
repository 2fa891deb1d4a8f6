"""The tokens of some sequences that were submitted together, in the order in which they come."""

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from megainfer.errors import MegaInferError
from megainfer.messages.requests import FinishReason, TokenEvent


class TokenStream:
    """An asynchronous iterator of token events that ends after the last sequence's end.

    An error of any sequence is raised and closes the stream. Closing aborts what is unfinished; it
    doesn't wait, so it also works while a task is being cancelled. Use it as a context manager.
    """

    def __init__(
        self, request_ids: Iterable[str], abandon: Callable[[str, FinishReason], object]
    ) -> None:
        self._open = set(request_ids)
        self._abandon = abandon
        # Bounded by what was asked for: max_tokens events a sequence, and its end.
        self._events: asyncio.Queue[TokenEvent | MegaInferError] = asyncio.Queue()

    def put(self, item: TokenEvent | MegaInferError) -> None:
        """Called by the engine client for each event, and for the error that ends a sequence."""
        self._events.put_nowait(item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        while self._open:
            item = await self._events.get()
            if isinstance(item, MegaInferError):
                self.close()
                raise item
            if item.request_id in self._open:  # else it was dropped while this was queued
                if item.finish_reason is not None:
                    self._open.discard(item.request_id)
                return item
        raise StopAsyncIteration

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return not self._open

    def drop(self, request_id: str) -> None:
        """End one of the sequences, whose text is complete: its further events don't matter."""
        self._end(request_id, FinishReason.STOP)

    def close(self) -> None:
        """Abort every sequence that hasn't ended."""
        for request_id in list(self._open):
            self._end(request_id, FinishReason.ABORT)

    def _end(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self._open:
            self._open.discard(request_id)
            self._abandon(request_id, reason)

    async def aclose(self) -> None:
        """`close`, for those who treat this as an asynchronous generator."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
