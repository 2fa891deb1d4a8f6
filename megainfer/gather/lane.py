"""One micro-batch as an expert node sees it: its cohort, and what of it could be served."""

from typing import NamedTuple

from megainfer.errors import ProtocolError
from megainfer.gather.pace import Pace
from megainfer.gather.place import Batch, Place


class Candidate(NamedTuple):
    """The rows at one layer of one micro-batch; they may be served from `due` on."""

    lane: "Lane"
    layer: int
    oldest: float
    due: float


class Lane:
    """One micro-batch: where its attention nodes are, and which of them travel together."""

    def __init__(self, micro_batch: int, first_layer: int, pace: Pace) -> None:
        self.micro_batch = micro_batch
        self.first_layer = first_layer
        self.pace = pace
        self.places: dict[int, Place] = {}
        self.cohort: set[int] = set()
        self.heard = 0.0  # when the cohort last moved
        self.served: tuple[int, float] | None = None  # the cohort's last layer, and when
        self.step_began: float | None = None

    def arrived(self, source: int, layer: int, rows: int, now: float) -> None:
        before = self.places.get(source)
        if before and before.rows:
            raise ProtocolError(
                f"attention node {source} sent layer {layer} of micro-batch {self.micro_batch} "
                f"while its {before.rows} rows of layer {before.layer} are unanswered"
            )
        if before and layer <= before.layer:
            self.pace.step_ended_at(before.layer)
        fresh = Place(0, layer, rows, now, misses=0)
        self.places[source] = before.successor(layer, rows, now) if before else fresh
        if source in self.cohort:
            self.heard = now

    def forget(self, source: int) -> None:
        self.places.pop(source, None)
        self.cohort.discard(source)
        if not self.cohort:
            self._disband()

    def candidates(self) -> list[Candidate]:
        """What could be served, each from when on; whatever waits is in one or behind one."""
        layers = {place.layer for place in self.places.values() if place.rows}
        if not layers:
            return []
        if self._are_together():
            oldest = min(place.since for place in self.places.values())
            return [Candidate(self, layers.pop(), oldest, oldest)]
        target = self._target()
        candidates = (self._candidate(layer, target) for layer in layers)
        return [candidate for candidate in candidates if candidate is not None]

    def _are_together(self) -> bool:
        """Whether all are of the cohort and wait at one layer, as they mostly do; what the rules
        say then takes no deliberation."""
        if len(self.cohort) != len(self.places):
            return False
        places = iter(self.places.values())
        first = next(places)
        return first.rows > 0 and all(
            place.rows and place.layer == first.layer and place.step == first.step
            for place in places
        )

    def _candidate(self, layer: int, target: tuple[int, int] | None) -> Candidate | None:
        here = self._waiting_at(layer)
        members = [source for source in here if source in self.cohort]
        oldest = min(self.places[source].since for source in members or here)
        if not members:
            return Candidate(self, layer, oldest, self._others_due(here, oldest))
        if target and layer == target[1]:
            return Candidate(self, layer, oldest, self._cohort_due(target, oldest))
        return None

    def take(self, layer: int, now: float) -> Batch:
        """All rows that wait at `layer`; if it's the cohort that is here, it is renewed."""
        if self._are_together():
            here, cohort, dropped = sorted(self.places), frozenset(self.cohort), frozenset[int]()
            self._measure(here, layer, now)
        else:
            here = self._waiting_at(layer)
            cohort, dropped = self._settle_cohort(here, layer, now)
        rows = {source: self.places[source].rows for source in here}
        for source in here:
            self.places[source].rows = 0
        return Batch(self.micro_batch, layer, rows, cohort, dropped)

    def _settle_cohort(
        self, here: list[int], layer: int, now: float
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Who travels with those that are here, nobody if they are aside, and who is dropped."""
        dropped: frozenset[int] = frozenset()
        if self._are_aside(here) and self._is_lost(now):
            dropped = self._disband()
            self._missed(dropped)
        if self._are_aside(here):
            return frozenset(), dropped
        dropped |= self._renew(here, layer)
        self._measure(here, layer, now)
        return frozenset(self.cohort), dropped

    def _standing_at(self, layer: int) -> list[int]:
        return sorted(s for s, place in self.places.items() if place.layer == layer)

    def _waiting_at(self, layer: int) -> list[int]:
        return [source for source in self._standing_at(layer) if self.places[source].rows]

    def _target(self) -> tuple[int, int] | None:
        """The (step, layer) at which the cohort is served next, None while none of it waits."""
        places = (self.places[source] for source in self.cohort)
        return min((place.position for place in places if place.rows), default=None)

    def _late(self, target: tuple[int, int]) -> frozenset[int]:
        return frozenset(s for s in self.cohort if self.places[s].position < target)

    def _are_aside(self, sources: list[int]) -> bool:
        return bool(self.cohort) and self.cohort.isdisjoint(sources)

    def _cohort_due(self, target: tuple[int, int], oldest: float) -> float:
        if not self._late(target):
            return oldest
        first = target[1] == self.first_layer
        return oldest + (self.pace.step_wait() if first else self.pace.layer_wait())

    def _others_due(self, sources: list[int], oldest: float) -> float:
        if not self.cohort:
            return oldest
        slow = any(self.places[source].is_slow for source in sources)
        sooner = self.pace.alone_from if slow else self._silent_from()
        return min(oldest + self.pace.step_wait(), max(oldest, sooner))

    def _silent_from(self) -> float:
        """From when on the others don't wait any more for a cohort that isn't heard of."""
        between_steps = self.served is not None and self.served[0] == self.pace.last_layer
        wait = self.pace.step_wait() if between_steps else 2 * self.pace.layer_wait()
        return self.heard + wait

    def _is_lost(self, now: float) -> bool:
        """The cohort is silent while as many others wait: they'd better be the cohort."""
        waiting = {source for source, place in self.places.items() if place.rows}
        return now >= self._silent_from() and len(waiting - self.cohort) >= len(self.cohort)

    def _renew(self, here: list[int], layer: int) -> frozenset[int]:
        """Let who is here into the cohort and who is late out of it; returns the latter."""
        target = self._target() or (0, layer)
        late = self._late(target)
        self._missed(late)
        self.cohort -= late
        self.cohort.update(source for source in here if not self.places[source].is_slow)
        if layer == self.first_layer:  # Who needn't be served here, for want of rows, joins too.
            standing = self._standing_at(layer)
            self.cohort.update(s for s in standing if not self.places[s].misses)
        for source in self.cohort:
            if self.places[source].layer == layer:
                self.places[source].step = target[0]
        return late

    def _missed(self, sources: frozenset[int]) -> None:
        for source in sources:
            self.places[source].misses += 1

    def _measure(self, here: list[int], layer: int, now: float) -> None:
        """Learn what is usual from the cohort's batches.

        A round trip counts to the median arrival: our own waits for the slow are not in it, or one
        wait would justify a longer one.
        """
        if self.served and layer > self.served[0]:
            arrivals = sorted(self.places[source].since for source in here)
            arrival = arrivals[(len(arrivals) - 1) // 2]
            self.pace.round_trip.add(max(0.0, arrival - self.served[1]))
        else:
            if self.step_began is not None:
                self.pace.step.add(now - self.step_began)
            self.step_began = now
        self.served = layer, now
        self.heard = now

    def slow_part(self) -> float:
        """The share of this micro-batch's attention nodes that are slow; at least one of them."""
        slow = sum(place.is_slow for place in self.places.values())
        return max(1, slow) / max(1, len(self.places))

    def _disband(self) -> frozenset[int]:
        members = frozenset(self.cohort)
        self.cohort.clear()
        self.served = self.step_began = None
        return members
