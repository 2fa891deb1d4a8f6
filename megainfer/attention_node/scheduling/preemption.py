"""Whose blocks may be taken for a sequence that comes before it."""

from collections.abc import Iterable
from functools import cached_property

from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.turns import ClientTurns


class Victims:
    """The running sequences at rest, from the last in order, while one step is composed.

    They are looked up when first needed. Nobody comes to rest while a step is composed, and as
    it is filled in order, nobody in it comes after the one who needs a block. (Newcomers may come
    before some in it, but are let in only where they need nobody's blocks.)
    """

    def __init__(self, running: Iterable[Sequence], turns: ClientTurns) -> None:
        self._running = running
        self._rank = turns.rank

    def after(self, sequence: Sequence) -> Sequence | None:
        """The next one to preempt for `sequence`, each only once; None: it has to wait."""
        while self._last_ones and not is_takeable(self._last_ones[-1]):
            self._last_ones.pop()  # it was preempted meanwhile, or is in this step
        if self._last_ones and self._rank(self._last_ones[-1]) > self._rank(sequence):
            return self._last_ones.pop()
        return None

    @cached_property
    def _last_ones(self) -> list[Sequence]:
        return sorted(filter(is_takeable, self._running), key=self._rank)


def is_takeable(sequence: Sequence) -> bool:
    """Whether its blocks can be taken now."""
    return sequence.is_at_rest and sequence.status is Status.RUNNING
