"""Whose blocks may be taken for a sequence that comes before it."""

from collections.abc import Iterable
from functools import cached_property
from operator import attrgetter

from megainfer.attention_node.scheduling.sequence import Sequence, Status


class Victims:
    """The running sequences at rest, from the last in order, while one step is composed.

    They are looked up when first needed. Nobody comes to rest while a step is composed, and as
    it is filled in order, nobody in it comes after the one who needs a block. (Newcomers may come
    before some in it, but are let in only where they need nobody's blocks.)
    """

    def __init__(self, running: Iterable[Sequence]) -> None:
        self._running = running

    def after(self, sequence: Sequence) -> Sequence | None:
        """The next one to preempt for `sequence`, each only once; None: it has to wait."""
        if self._last_ones and self._last_ones[-1].order > sequence.order:
            return self._last_ones.pop()
        return None

    @cached_property
    def _last_ones(self) -> list[Sequence]:
        return sorted(filter(_is_takeable, self._running), key=attrgetter("order"))


def _is_takeable(sequence: Sequence) -> bool:
    return sequence.is_at_rest and sequence.status is Status.RUNNING
