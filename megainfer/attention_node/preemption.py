"""Whose blocks may be taken for an older sequence."""

from collections.abc import Iterable
from functools import cached_property
from operator import attrgetter

from megainfer.attention_node.sequence import Sequence, Status


class Victims:
    """The running sequences at rest, from the youngest, while one step is composed.

    They are looked up when first needed. Nobody comes to rest while a step is composed, and as
    it is filled in order of arrival, nobody in it is younger than the one who needs a block.
    """

    def __init__(self, running: Iterable[Sequence]) -> None:
        self._running = running

    def younger_than(self, sequence: Sequence) -> Sequence | None:
        """The next one to preempt for `sequence`, each only once; None: it has to wait."""
        if self._youngest_last and self._youngest_last[-1].arrival > sequence.arrival:
            return self._youngest_last.pop()
        return None

    @cached_property
    def _youngest_last(self) -> list[Sequence]:
        return sorted(filter(_is_takeable, self._running), key=attrgetter("arrival"))


def _is_takeable(sequence: Sequence) -> bool:
    return sequence.is_at_rest and sequence.status is Status.RUNNING
