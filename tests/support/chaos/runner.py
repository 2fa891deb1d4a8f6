"""Trial after trial, on as few instances as it takes."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep

from tests.support.chaos.draw import STARTING, Draw, Shape
from tests.support.chaos.instance import Instance
from tests.support.chaos.trial import AT_ONCE, EVERY, Answers, Report, Trial, orders_of
from tests.support.chaos.wishes import Answer, Outcome, Wish, ask_all

ELSEWHERE = (Shape(1, 1), Shape(1, 2), Shape(1, 3), Shape(1, 4))
"""Where sums of experts are made in other orders."""


class Runner:
    """Draws of the same shape share an instance for as long as it lives and rests. wishes: those
    whose answers are learned, of which any may be asked for."""

    def __init__(
        self, model: Path, options: Sequence[str] = (), wishes: Sequence[Wish] = EVERY
    ) -> None:
        self._model = model
        self._options = options
        self._wishes = wishes
        self._instance: Instance | None = None
        self._answers: dict[Shape, Answers] = {}
        self._elsewhere: list[dict[int, Answer]] = []
        self.last = ""  # all that the instance printed which was closed last

    def run(self, draws: Sequence[Draw]) -> Iterator[Report]:
        """Each one's report as it is done; those of one shape after the other."""
        for draw in sorted(draws, key=_group):
            yield self._try(draw)

    def close(self) -> None:
        if self._instance is not None:
            self._instance.close()
            self.last = self._instance.served.output
            self._instance = None

    def _try(self, draw: Draw) -> Report:
        if draw.shape not in self._answers:
            self.at_rest(draw.shape)
        answers = self.answers(draw.shape)
        if draw.phase in STARTING:
            self.close()
            instance = Instance(self._model, draw.shape, self._options, orders_of(draw))
            self._instance = instance
        else:
            instance = self.at_rest(draw.shape)
        report = Trial(draw, instance, answers).run()
        if report.ended or report.wrong or not instance.is_alive:
            self.close()
        return report

    def answers(self, shape: Shape) -> Answers:
        """What is known of this shape; learned when an instance of it first rests."""
        return self._answers.setdefault(shape, Answers(self._ask_elsewhere, self._wishes))

    def ask(self, instance: Instance, outcomes: Sequence[Outcome]) -> None:
        asyncio.run(ask_all(instance.url, outcomes, AT_ONCE))

    @contextmanager
    def asking(self, instance: Instance, outcomes: Sequence[Outcome]) -> Iterator[None]:
        """Within it, all have been admitted; after it, all have ended."""
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.ask, instance, outcomes)
            while not all(outcome.admitted for outcome in outcomes) and not asked.done():
                sleep(0.01)
            yield
            asked.result()

    def _ask_elsewhere(self, wish: Wish) -> list[Answer]:
        if not self._elsewhere:
            self._elsewhere = [self._all_answers(shape) for shape in ELSEWHERE]
        return [answers[id(wish)] for answers in self._elsewhere]

    def _all_answers(self, shape: Shape) -> dict[int, Answer]:
        outcomes = [Outcome(wish) for wish in self._wishes]
        instance = Instance(self._model, shape, self._options)
        try:
            assert instance.wait_until_ready(), instance.served.output
            self.ask(instance, outcomes)
        finally:
            instance.close()
        return {id(outcome.wish): outcome.answer for outcome in outcomes}

    def at_rest(self, shape: Shape) -> Instance:
        """The present instance if it is of this shape, else another."""
        if self._instance is not None and self._instance.shape != shape:
            self.close()
        if self._instance is None:
            self._instance = instance = Instance(self._model, shape, self._options)
            assert instance.wait_until_ready(), instance.served.output
            # What it holds at rest is seen once it has worked.
            self.answers(shape).learn(instance)
            assert (wrong := instance.settle()) == [], wrong
        return self._instance


def _group(draw: Draw) -> tuple[str, bool, int]:
    """Those that need an instance of their own come last."""
    return str(draw.shape), draw.phase in STARTING, draw.seed
