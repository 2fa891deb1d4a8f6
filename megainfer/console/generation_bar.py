"""The progress of an offline `generate`: sequences finished, tokens a second."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class GenerationBar:
    """A bar over `total` sequences; `live` draws it while it is entered."""

    def __init__(self, shown: bool, total: int) -> None:
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
            disable=not shown or total == 0,
        )
        self._task = self.live.add_task("generating", total=total, rate="")
        self._tokens = 0

    def add(self, tokens: int, finished: bool) -> None:
        """A sequence has got so many more tokens, and may have ended with them."""
        self._tokens += tokens
        elapsed = self.live.tasks[0].elapsed or 0.0
        rate = f"{self._tokens / max(elapsed, 1e-3):.1f} tokens/s"
        self.live.update(self._task, advance=int(finished), rate=rate)
