"""How the scheduler is told in how many micro-batches requests decode."""

from time import monotonic
from typing import Protocol

from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.attention_node.scheduling.step import Step
from megainfer.attention_node.scheduling.tuning import MicroBatchTuner, StepProgress


class Tuner(Protocol):
    """Chooses in how many of its micro-batches a scheduler's requests decode."""

    def begin(self, scheduler: Scheduler) -> None:
        """Before its first step."""

    def enter(self, with_others: bool, scheduler: Scheduler) -> None:
        """Another membership. with_others: there are other attention nodes, whose micro-batches
        are computed together with these: then all have as many as was chosen at the start."""

    def step_ended(self, step: Step, scheduler: Scheduler) -> None:
        """After each of its steps."""


class NoTuner:
    """`Tuner` that leaves it at all of them."""

    def begin(self, scheduler: Scheduler) -> None:
        """Nothing is to be said."""

    def enter(self, with_others: bool, scheduler: Scheduler) -> None:
        """It is the same for all already."""

    def step_ended(self, step: Step, scheduler: Scheduler) -> None:
        """Nothing is to be learnt."""


class LoadTuner:
    """`Tuner` by what `MicroBatchTuner` finds for the load of the moment."""

    def __init__(self, tuner: MicroBatchTuner) -> None:
        self._tuner = tuner
        self._first = tuner.active
        self._rests = False

    def enter(self, with_others: bool, scheduler: Scheduler) -> None:
        """See `Tuner.enter`."""
        self._rests = with_others
        scheduler.use_micro_batches(self._first if with_others else self._tuner.active)

    def begin(self, scheduler: Scheduler) -> None:
        """See `Tuner.begin`."""
        scheduler.use_micro_batches(self._tuner.active)

    def step_ended(self, step: Step, scheduler: Scheduler) -> None:
        """See `Tuner.step_ended`."""
        if self._rests:
            return
        before, chunks = self._tuner.active, step.chunks
        now = self._tuner.step_ended(
            StepProgress(
                now=monotonic(),
                tokens=sum(chunk.samples for chunk in chunks),
                running=max(1, scheduler.num_running),
                context=sum(chunk.end for chunk in chunks) / len(chunks),
                prefills=step.num_rows > len(chunks),
            )
        )
        if now != before:
            scheduler.use_micro_batches(now)
