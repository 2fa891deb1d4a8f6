"""Who watches the life of sequences from the front end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megainfer.messages.requests import FinishReason, Submit, TokenEvent


class EngineObserver(Protocol):
    """Who is told of every sequence's life, for metrics."""

    def submitted(self, submits: Sequence[Submit], nodes: Sequence[int | None]) -> None:
        """These came together; nodes: to which each of them was sent, None: it waits for one."""

    def moved(self, request_id: str, node: int) -> None:
        """A sequence that waited, or whose node has died, was sent to this node."""

    def produced(self, node: int, events: Sequence[TokenEvent]) -> None:
        """What one step of one micro-batch produced of sequences in flight."""

    def ended(self, request_id: str, reason: FinishReason | None) -> None:
        """A sequence was ended by something else than an event of its node; None: by an error."""


class NobodyObserves:
    """An observer that doesn't look."""

    def submitted(self, submits: Sequence[Submit], nodes: Sequence[int | None]) -> None: ...

    def moved(self, request_id: str, node: int) -> None: ...

    def produced(self, node: int, events: Sequence[TokenEvent]) -> None: ...

    def ended(self, request_id: str, reason: FinishReason | None) -> None: ...


@dataclass(frozen=True)
class SeveralObserve:
    """An observer that tells each of several."""

    observers: Sequence[EngineObserver]

    def submitted(self, submits: Sequence[Submit], nodes: Sequence[int | None]) -> None:
        for observer in self.observers:
            observer.submitted(submits, nodes)

    def moved(self, request_id: str, node: int) -> None:
        for observer in self.observers:
            observer.moved(request_id, node)

    def produced(self, node: int, events: Sequence[TokenEvent]) -> None:
        for observer in self.observers:
            observer.produced(node, events)

    def ended(self, request_id: str, reason: FinishReason | None) -> None:
        for observer in self.observers:
            observer.ended(request_id, reason)
