"""Who has agents started for an instance, as the supervisor sees it."""

from typing import Protocol


class Launcher(Protocol):
    """A process of its own (`megainfer.launchers`), whose agents end when it does."""

    def fileno(self) -> int:
        """Readable when `check` has something to do."""

    def check(self) -> None:
        """Tell what it has said; never blocks. Raises NodeDied where it has ended, or says that
        agents can't be had."""

    def end(self, seconds: float) -> None:
        """The agents have been dismissed: wait for its end, and bring it about after so long."""

    def close(self) -> None:
        """In another child: hold nothing of it."""
