"""In which order a run takes its problems."""

from random import Random


class ProblemOrder:
    """Each problem once an epoch, every epoch in another order, which (seed, epoch) alone decides.

    drawn: how many a run has taken so far, from which it goes on.
    """

    def __init__(self, problems: int, seed: int, drawn: int = 0) -> None:
        self._problems = problems
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []
        self.drawn = drawn

    @property
    def epoch(self) -> float:
        """How often the data has been gone through."""
        return self.drawn / self._problems

    def draw(self) -> int:
        """The next problem's place in the data."""
        epoch, place = divmod(self.drawn, self._problems)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(self._problems))
            Random(f"{self._seed}, {epoch}").shuffle(self._order)
        self.drawn += 1
        return self._order[place]
