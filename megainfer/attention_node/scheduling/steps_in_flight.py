"""Which steps hold which tokens of which sequences."""

from collections.abc import Iterable, Iterator

from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.step import Chunk, Step


class StepsInFlight:
    """At most one of each micro-batch, from its composing to its end. How far each has come is
    none of the scheduler's business."""

    def __init__(self) -> None:
        self._steps: dict[int, Step] = {}  # by micro-batch

    def __len__(self) -> int:
        return len(self._steps)

    def __contains__(self, micro_batch: int) -> bool:
        return micro_batch in self._steps

    @property
    def micro_batches(self) -> Iterable[int]:
        """Those that have one."""
        return self._steps.keys()

    @property
    def by_age(self) -> tuple[Step, ...]:
        """Oldest first."""
        return tuple(sorted(self._steps.values(), key=lambda step: step.number))

    def begin(self, step: Step) -> None:
        """It was composed; its sequences know it already."""
        self._steps[step.micro_batch] = step

    def check_order(self, step: Step) -> None:
        """Only after those that it depends on may a step be completed."""
        early = set(step.depends_on).intersection(s.number for s in self._steps.values())
        assert not early, f"step {step.number} ends before steps {early}, on which it depends"

    def end(self, step: Step) -> None:
        """It holds nobody any more."""
        known = self._steps.pop(step.micro_batch, None)
        assert known is step, f"step {step.number} is not in flight"
        for chunk in step.chunks:
            chunk.sequence.in_flight.remove(step.number)

    def problems(self, live: Iterable[Sequence]) -> Iterator[str]:
        """What contradicts what the live sequences say."""
        held_by = self._held_by_sequence()
        for sequence in live:
            held = held_by.pop(sequence.request_id, [])
            if [number for number, _ in held] != sequence.in_flight:
                yield f"{sequence.request_id} is in steps {sequence.in_flight}, {held} hold it"
            if sequence.status is Status.STALLED:
                continue
            bounds = [sequence.num_computed, *(c.end for _, c in held)]
            starts = [*(c.start for _, c in held), sequence.num_scheduled]
            if bounds != starts:
                yield f"{sequence.request_id}: parts end at {bounds} but begin at {starts}"
        if held_by:
            yield f"steps in flight hold {list(held_by)}, which are gone"

    def _held_by_sequence(self) -> dict[str, list[tuple[int, Chunk]]]:
        held: dict[str, list[tuple[int, Chunk]]] = {}
        for step in self.by_age:
            for chunk in step.chunks:
                held.setdefault(chunk.sequence.request_id, []).append((step.number, chunk))
        return held
