"""Who is told how an instance starts and ends."""

from collections.abc import Mapping
from typing import Protocol


class Observer(Protocol):
    """Who is told how the start goes: the terminal, or the process that wants an `LLM`."""

    def stage(self, text: str) -> None: ...

    def loading(self, name: str, done: int, total: int) -> None: ...

    def ready(self, micro_batches: int, startup: Mapping[str, float]) -> None:
        """startup: seconds of each stage."""

    def ended(self, error: str | None) -> None:
        """It ends, at whatever stage: because of `error`, or because it was told to."""
