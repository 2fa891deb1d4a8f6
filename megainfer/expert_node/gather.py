"""What an expert node serves next: the messages of which attention nodes, and how long to wait.

An expert reads its weights once a batch, so serving eight attention nodes together costs little
more than serving one: batching over attention nodes is what disaggregation is for. `Gather` says
when to wait for the others and when to stop. It holds no tensors and reads no clock: whoever calls
it says what time it is (seconds, any origin).

Each micro-batch has a cohort: the attention nodes that travel through the layers together.

- At a layer the cohort is waited for, briefly; whoever misses is dropped from it. At a step's
  first layer the wait may be as long as a step.
- Everyone else (a newcomer, one that was dropped) waits, at most about a step's time, until the
  cohort comes by the same layer, and is of it from then on. Never does the cohort wait for them.
- Whoever was dropped twice in a step is slow. To the end of that step it is served without
  waiting for the cohort, in a limited share of this node's time.

docs/pipeline.md has the reasons and the figures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from megainfer.errors import ConfigError, ProtocolError


@dataclass(frozen=True)
class Wait:
    """A bound in seconds: so many times what is usual, but within `floor` and `cap`."""

    times: float
    floor: float
    cap: float

    def __post_init__(self) -> None:
        if not (0 < self.floor <= self.cap < float("inf") and self.times > 0):
            raise ConfigError(f"a wait needs times > 0 and 0 < floor <= cap < inf, got {self}")

    def seconds(self, usual: float | None) -> float:
        """The bound; before anything is usual, the cap."""
        return self.cap if usual is None else min(max(self.times * usual, self.floor), self.cap)


@dataclass(frozen=True)
class GatherLimits:
    """How long gathers wait.

    `layer` multiplies the time that m micro-batches need for one layer if nobody is slow (about
    m T_f), `step` the usual time of all layers. `alone_share` limits the part of this node's time
    that slow attention nodes get for batches of their own, as a multiple of their part among the
    attention nodes; but they too wait no longer than `step` says.
    """

    layer: Wait = Wait(times=1.5, floor=0.002, cap=1.0)
    step: Wait = Wait(times=1.5, floor=0.01, cap=10.0)
    alone_share: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.alone_share < float("inf"):
            raise ConfigError(f"alone_share must be above 0 and finite, got {self.alone_share}")


class Batch(NamedTuple):
    """One layer of one micro-batch, to be served now."""

    micro_batch: int
    layer: int
    rows: dict[int, int]  # attention node -> its rows, at least 1; serve exactly these
    cohort: frozenset[int]  # who travels together, zero rows included; empty: this is a batch aside
    dropped: frozenset[int]  # who was waited for in vain and is of the cohort no more


@dataclass
class _Usual:
    """A moving average of seconds; None before the first."""

    seconds: float | None = None

    def add(self, sample: float) -> None:
        if self.seconds is None:
            self.seconds = sample
        else:  # One stall must not make long waits usual.
            self.seconds += 0.1 * (min(sample, 2 * self.seconds) - self.seconds)


@dataclass
class _Pace:
    """What is usual on this node, and so how long to wait."""

    limits: GatherLimits
    num_micro_batches: int
    last_layer: int | None = None  # of a step; None until somebody began a second one
    service: _Usual = field(default_factory=_Usual)
    round_trip: _Usual = field(default_factory=_Usual)  # from a batch to the next layer's messages
    step: _Usual = field(default_factory=_Usual)
    alone_from: float = 0.0  # when slow attention nodes may have a batch of their own again

    def layer_wait(self) -> float:
        return self.limits.layer.seconds(self._layer_seconds())

    def _layer_seconds(self) -> float | None:
        """About m T_f; a round trip without queues is T_a + T_e + 2 T_c, so about 2 T_f."""
        if self.round_trip.seconds is not None:
            return self.round_trip.seconds * self.num_micro_batches / 2
        if self.service.seconds is not None:
            return self.service.seconds * self.num_micro_batches
        return None

    def step_wait(self) -> float:
        return self.limits.step.seconds(self.step.seconds)

    def step_ended_at(self, layer: int) -> None:
        self.last_layer = max(layer, self.last_layer or layer)

    def served_aside(self, started: float, ended: float, part: float) -> None:
        """`part` of the attention nodes are slow, and entitled to about as much of the time."""
        self.alone_from = started + (ended - started) / min(1.0, self.limits.alone_share * part)


@dataclass
class _Place:
    """Where an attention node was last heard of in one micro-batch."""

    step: int  # counts its passes through the layers; comparable within a cohort only
    layer: int
    rows: int  # that wait here
    since: float
    misses: int  # how often the cohort went on without it in this step

    @property
    def position(self) -> tuple[int, int]:
        return self.step, self.layer

    def successor(self, layer: int, rows: int, now: float) -> "_Place":
        if layer > self.layer:
            return _Place(self.step, layer, rows, now, self.misses)
        return _Place(self.step + 1, layer, rows, now, misses=0)

    @property
    def is_slow(self) -> bool:
        return self.misses > 1


class _Candidate(NamedTuple):
    """The rows at one layer of one micro-batch; they may be served from `due` on."""

    lane: "_Lane"
    layer: int
    oldest: float
    due: float


class _Lane:
    """One micro-batch: where its attention nodes are, and which of them travel together."""

    def __init__(self, micro_batch: int, first_layer: int, pace: _Pace) -> None:
        self.micro_batch = micro_batch
        self.first_layer = first_layer
        self.pace = pace
        self.places: dict[int, _Place] = {}
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
        fresh = _Place(0, layer, rows, now, misses=0)
        self.places[source] = before.successor(layer, rows, now) if before else fresh
        if source in self.cohort:
            self.heard = now

    def forget(self, source: int) -> None:
        self.places.pop(source, None)
        self.cohort.discard(source)
        if not self.cohort:
            self._disband()

    def candidates(self) -> list[_Candidate]:
        """What could be served, each from when on; whatever waits is in one or behind one."""
        layers = {place.layer for place in self.places.values() if place.rows}
        if not layers:
            return []
        if self._are_together():
            oldest = min(place.since for place in self.places.values())
            return [_Candidate(self, layers.pop(), oldest, oldest)]
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

    def _candidate(self, layer: int, target: tuple[int, int] | None) -> _Candidate | None:
        here = self._waiting_at(layer)
        members = [source for source in here if source in self.cohort]
        oldest = min(self.places[source].since for source in members or here)
        if not members:
            return _Candidate(self, layer, oldest, self._others_due(here, oldest))
        if target and layer == target[1]:
            return _Candidate(self, layer, oldest, self._cohort_due(target, oldest))
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


class Gather:
    """Decides what one expert node serves next; the module's text has the rule."""

    def __init__(
        self, num_micro_batches: int, first_layer: int, limits: GatherLimits | None = None
    ) -> None:
        """`first_layer` is the first layer with experts; every step begins there."""
        self._pace = _Pace(limits or GatherLimits(), num_micro_batches)
        self._lanes = [_Lane(mb, first_layer, self._pace) for mb in range(num_micro_batches)]
        self._sources: set[int] = set()

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
        chosen: _Candidate | None = None
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

    def _candidates(self) -> Iterator[_Candidate]:
        for lane in self._lanes:
            yield from lane.candidates()

    def _lane(self, source: int, micro_batch: int) -> _Lane:
        if source not in self._sources:
            raise ProtocolError(f"attention node {source} is no member of this epoch")
        if not 0 <= micro_batch < len(self._lanes):
            raise ProtocolError(
                f"attention node {source} speaks of micro-batch {micro_batch}, "
                f"there are {len(self._lanes)}"
            )
        return self._lanes[micro_batch]
