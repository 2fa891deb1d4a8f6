"""How a step of a training run goes, while it does."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from megainfer.rl.rollout.engine import Context, Drawn, Ended, RolloutEngine


class StepBar:
    """A line below all others, on a terminal only; `live` draws it while it is entered."""

    def __init__(self, console: Console) -> None:
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.live.add_task("starting", total=None)

    def begin(self, what: str, total: int | None = None) -> None:
        """Something else from now on, from nothing."""
        self.live.remove_task(self._task)  # one without a total can't be had by a reset
        self._task = self.live.add_task(what, total=total)

    def advance(self) -> None:
        """One more of the total."""
        self.live.advance(self._task)


class WatchedEngine:
    """Another engine, whose answers a bar counts as they end; in between the models are trained."""

    def __init__(self, engine: RolloutEngine, bar: StepBar) -> None:
        self._engine = engine
        self._bar = bar

    @property
    def end_tokens(self) -> Sequence[int]:
        """The engine's."""
        return self._engine.end_tokens

    def draw(self, contexts: Sequence[Context], greedy: bool = False) -> list[Drawn]:
        """Which evaluations do."""
        self._bar.begin(f"evaluating {len(contexts)} answers")
        return self._engine.draw(contexts, greedy)

    def draw_each(self, contexts: Sequence[Context]) -> Iterator[Ended]:
        """As the engine does."""
        self._bar.begin("drawing", len(contexts))
        for ended in self._engine.draw_each(contexts):
            self._bar.advance()
            yield ended
        self._bar.begin("training")

    def update_weights(self, folder: Path) -> None:
        """As the engine does."""
        self._bar.begin("new weights")
        self._engine.update_weights(folder)

    def close(self) -> None:
        """The engine."""
        self._engine.close()
