"""Over all micro-batches: what is served next. The room's text has the rule."""

from collections.abc import Collection, Iterator

from megainfer.errors import ProtocolError
from megainfer.gather.lane import Candidate, Lane
from megainfer.gather.pace import GatherLimits, Pace
from megainfer.gather.place import Batch


class Gather:
    """Decides what one expert node serves next; the room's text has the rule."""

    def __init__(
        self, num_micro_batches: int, first_layer: int, limits: GatherLimits | None = None
    ) -> None:
        """`first_layer` is the first layer with experts; every step begins there."""
        self._pace = Pace(limits or GatherLimits(), num_micro_batches)
        self._lanes = [Lane(mb, first_layer, self._pace) for mb in range(num_micro_batches)]
        self._sources: set[int] = set()

    def enter(self, sources: Collection[int]) -> None:
        """Another epoch, of which these attention nodes are members; nothing waits from before."""
        for source in self._sources | set(sources):
            self.left(source)
        for source in sources:
            self.joined(source)

    def joined(self, source: int) -> None:
        """An attention node is a member of this epoch; it is expected once it has spoken."""
        self._sources.add(source)

    def left(self, source: int) -> None:
        """An attention node is gone, with all that waits from it; unknown ones are ignored."""
        self._sources.discard(source)
        for lane in self._lanes:
            lane.forget(source)

    def arrived(self, source: int, micro_batch: int, layer: int, rows: int, now: float) -> None:
        """A dispatch came in; with zero rows it only says that its sender has come this far.

        It takes the place of the sender's last message in this micro-batch. Raises ProtocolError
        if that one had rows which no batch has taken, or if the sender or micro-batch is unknown.
        """
        self._lane(source, micro_batch).arrived(source, layer, rows, now)

    def rest(self, source: int, micro_batch: int) -> None:
        """The node has nothing for this micro-batch, and isn't expected until it speaks again."""
        lane = self._lane(source, micro_batch)
        place = lane.places.get(source)
        if place and place.rows:
            raise ProtocolError(
                f"attention node {source} rests in micro-batch {micro_batch} while its "
                f"{place.rows} rows of layer {place.layer} are unanswered"
            )
        lane.forget(source)

    def next(self, now: float) -> Batch | None:
        """Of the gathers that are complete or have waited enough, the oldest, taken out."""
        chosen: Candidate | None = None
        for candidate in self._candidates():
            if candidate.due <= now and (chosen is None or candidate.oldest < chosen.oldest):
                chosen = candidate
        return None if chosen is None else chosen.lane.take(chosen.layer, now)

    def deadline(self) -> float | None:
        """When `next` will have something if nothing else happens; None if nothing waits."""
        return min((candidate.due for candidate in self._candidates()), default=None)

    def served(self, batch: Batch, started: float, ended: float) -> None:
        """A batch was computed, which took from `started` to `ended`."""
        self._pace.service.add(ended - started)
        lane = self._lanes[batch.micro_batch]
        if batch.cohort:
            lane.heard = max(lane.heard, ended)
        else:
            self._pace.served_aside(started, ended, lane.slow_part())

    def _candidates(self) -> Iterator[Candidate]:
        for lane in self._lanes:
            yield from lane.candidates()

    def _lane(self, source: int, micro_batch: int) -> Lane:
        if source not in self._sources:
            raise ProtocolError(f"attention node {source} is no member of this epoch")
        if not 0 <= micro_batch < len(self._lanes):
            raise ProtocolError(
                f"attention node {source} speaks of micro-batch {micro_batch}, "
                f"there are {len(self._lanes)}"
            )
        return self._lanes[micro_batch]
