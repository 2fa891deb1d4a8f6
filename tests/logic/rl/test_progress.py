"""What a terminal sees of a training run between two lines."""

from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from megainfer.commands.rl.progress import StepBar, WatchedEngine
from megainfer.rl.rollout.engine import Context, Drawn, Ended

CONTEXTS = [Context([1], 1, seed) for seed in range(3)]


class Engine:
    """Draws a token for each; looks at the screen meanwhile."""

    end_tokens = (2,)

    def __init__(self, bar: StepBar) -> None:
        self._bar = bar
        self.seen: list[str] = []
        self.closed = False

    def draw(self, contexts: Sequence[Context], greedy: bool = False) -> list[Drawn]:
        self.look()
        return [Drawn([2], [0.0]) for _ in contexts]

    def draw_each(self, contexts: Sequence[Context]) -> Iterator[Ended]:
        for place in range(len(contexts)):
            self.look()
            yield Ended(place, Drawn([2], [0.0]), 0.0)

    def update_weights(self, folder: Path) -> None:
        self.look()

    def close(self) -> None:
        self.closed = True

    def look(self) -> None:
        (task,) = self._bar.live.tasks
        self.seen.append(f"{task.description} {task.completed:.0f}/{task.total}")


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_done_is_shown_on_a_terminal(terminal: bool) -> None:
    written = StringIO()
    console = Console(file=written, force_terminal=terminal, width=80, highlight=False)
    bar = StepBar(console)
    engine = Engine(bar)
    watched = WatchedEngine(engine, bar)
    with bar.live:
        assert [ended.place for ended in watched.draw_each(CONTEXTS)] == [0, 1, 2]
        engine.look()
        watched.update_weights(Path("unused"))
        assert len(watched.draw(CONTEXTS)) == 3
        console.print("step 1/2")
    watched.close()
    assert engine.closed
    assert watched.end_tokens == (2,)
    assert engine.seen == [
        *("drawing 0/3", "drawing 1/3", "drawing 2/3", "training 0/None"),
        *("new weights 0/None", "evaluating 3 answers 0/None"),
    ]
    assert ("evaluating" in written.getvalue()) == terminal
    assert "step 1/2" in written.getvalue()
