"""Answers that are scored while others are still drawn."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

from megainfer.rl.rewards.score import Score
from megainfer.rl.run.scoring import Answer, Scorer

Scores = dict[int, Score]
"""By the answers' numbers."""


class ScoringAside:
    """Has a scorer work in one thread, always the same: processes that it starts there end with the
    thread. Close it."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._thread = ThreadPoolExecutor(1, "scoring")

    @contextmanager
    def begun(self) -> Iterator["Scoring"]:
        """For the answers of one step; afterwards nothing of it goes on."""
        given: SimpleQueue[tuple[int, Answer] | None] = SimpleQueue()
        scoring = Scoring(given, self._thread.submit(self._score, given))
        try:
            yield scoring
        finally:
            scoring.end()

    def close(self) -> None:
        """It can be called twice."""
        self._thread.shutdown()

    def _score(self, given: "SimpleQueue[tuple[int, Answer] | None]") -> Scores:
        """All that have come are scored together, while others come."""
        found: Scores = {}
        while True:
            batch = [given.get()]
            while not given.empty():
                batch.append(given.get())
            answers = dict(one for one in batch if one is not None)
            if answers:
                scores = self._scorer.score(list(answers.values()))
                found.update(zip(answers, scores, strict=True))
            if None in batch:
                return found


class Scoring:
    """The answers of one step."""

    def __init__(
        self, given: "SimpleQueue[tuple[int, Answer] | None]", found: Future[Scores]
    ) -> None:
        self._given = given
        self._found = found

    def add(self, number: int, answer: Answer) -> None:
        """To be scored from now on."""
        self._given.put((number, answer))

    def take(self) -> Scores:
        """Of all that were added; waits for them, for as long as rewards may take. Raises what
        `Scorer.score` does."""
        self._given.put(None)
        return self._found.result()

    def end(self) -> None:
        """Wait for its end, whatever has come of it."""
        self._given.put(None)
        self._found.exception()
