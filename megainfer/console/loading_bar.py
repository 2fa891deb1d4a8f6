"""The progress of an offline engine's start, on a terminal's standard error."""

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from megainfer.messages.from_child import LoadProgress


class LoadingBar:
    """What the engine says of its start; `live` draws it while it is entered, and leaves nothing.

    shown: elsewhere than on a terminal nothing is shown in any case.
    """

    def __init__(self, shown: bool) -> None:
        console = Console(stderr=True)
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(True),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._stage = "starting"
        self._task = self.live.add_task("starting", total=None)

    def hear(self, progress: LoadProgress) -> None:
        """From whichever thread."""
        total = progress.total or None
        changed, self._stage = progress.stage != self._stage, progress.stage
        self.live.update(
            self._task,
            description=progress.stage,
            completed=progress.done,
            total=total,
            refresh=changed,  # a stage may be over before the bar would be drawn again
        )
