"""Whom an expert node serves together, for whom it waits, and that no wait is without a bound."""

from copy import deepcopy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from megainfer.errors import ConfigError, ProtocolError
from megainfer.gather import Batch, Gather, GatherLimits, Wait

LIMITS = GatherLimits(layer=Wait(1.5, 0.01, 1.0), step=Wait(1.5, 0.1, 10.0))
FIRST = 0
ROUND_TRIP = 2.0


class Node:
    """A Gather with a clock, serving in no time. One micro-batch unless told."""

    def __init__(self, *sources: int, micro_batches: int = 1, limits: GatherLimits = LIMITS):
        self.gather = Gather(micro_batches, FIRST, limits)
        self.now = 0.0
        for source in sources:
            self.gather.joined(source)

    def arrive(self, layer: int, *sources: int, rows: int = 1, micro_batch: int = 0) -> None:
        for source in sources:
            self.gather.arrived(source, micro_batch, layer, rows, self.now)

    def serve(self) -> Batch | None:
        batch = self.gather.next(self.now)
        if batch:
            self.gather.served(batch, self.now, self.now)
        return batch

    def served(self) -> set[int]:
        """The sources of the batch that is due now; empty if there is none."""
        batch = self.serve()
        return set(batch.rows) if batch else set()

    def wait(self) -> float:
        """Let the clock run to the deadline; returns how long that took."""
        deadline = self.gather.deadline()
        assert deadline is not None
        waited = max(0.0, deadline - self.now)
        self.now += waited
        return waited

    def together(self, *sources: int, layers: int = 4) -> None:
        """Make a cohort of the sources by two steps, the second of all in time."""
        self.arrive(FIRST, sources[0])
        assert self.served() == {sources[0]}
        for source in sources[1:]:
            self.arrive(FIRST, source)
        for layer in range(1, layers):
            self.now += ROUND_TRIP
            self.arrive(layer, sources[0])
            assert self.served() == {sources[0]}
        self.step(*sources, layers=layers, already=sources[1:])

    def step(self, *sources: int, layers: int = 4, already: tuple[int, ...] = ()) -> None:
        for layer in range(layers):
            self.now += ROUND_TRIP
            self.arrive(layer, *(s for s in sources if layer > FIRST or s not in already))
            assert self.served() == set(sources)


def test_a_single_attention_node_never_waits() -> None:
    node = Node(0)
    node.step(0)
    node.step(0)


def test_newcomers_wait_for_the_cohorts_next_first_layer_and_are_of_it_then() -> None:
    node = Node(0, 1, 2)
    node.together(0, 1, 2)
    node.arrive(FIRST, 0, 1)
    assert node.served() == set(), "2 is of the cohort and on its way"
    node.arrive(FIRST, 2)
    batch = node.serve()
    assert batch
    assert batch.rows == {0: 1, 1: 1, 2: 1}
    assert batch.cohort == {0, 1, 2}


def test_nobody_waits_in_a_new_epoch_for_who_left() -> None:
    node = Node(0, 1, 2)
    node.together(0, 1, 2)
    node.arrive(FIRST, 0, 1)
    node.gather.enter((0, 2))
    assert node.gather.deadline() is None, "what waited is forgotten"
    with pytest.raises(ProtocolError, match="attention node 1 is no member"):
        node.arrive(FIRST, 1)
    node.together(0, 2)
    node.step(0, 2)


def test_a_newcomer_does_not_wait_for_ever() -> None:
    node = Node(0, 1)
    node.together(0, 1)
    node.gather.joined(2)
    node.arrive(FIRST, 0, 1)
    assert node.served() == {0, 1}
    node.arrive(FIRST, 2)
    assert node.served() == set(), "the cohort may yet come by"
    assert node.wait() <= LIMITS.step.cap
    assert node.served() == {2}


def test_a_newcomer_goes_at_once_where_nobody_travels() -> None:
    node = Node(0, 1)
    node.together(0, 1)
    node.gather.rest(0, 0)
    node.gather.rest(1, 0)
    node.gather.joined(2)
    node.arrive(FIRST, 2)
    assert node.served() == {2}


def test_the_cohort_waits_for_its_late_member_briefly_and_then_drops_it() -> None:
    node = Node(0, 1, 2)
    node.together(0, 1, 2)
    node.step(0, 1, 2, layers=2)
    node.now += ROUND_TRIP
    node.arrive(2, 0, 1)
    assert node.served() == set()
    assert 0 < node.wait() <= 2 * ROUND_TRIP
    batch = node.serve()
    assert batch
    assert batch.rows == {0: 1, 1: 1}
    assert batch.cohort == {0, 1}
    assert batch.dropped == {2}


def straggling() -> Node:
    """0, 1, 2 travelled together; 2 missed layer 2 and arrives there as 0 and 1 are past it."""
    node = Node(0, 1, 2)
    node.together(0, 1, 2)
    node.step(0, 1, 2, layers=2)
    node.now += ROUND_TRIP
    node.arrive(2, 0, 1)
    node.wait()
    assert node.served() == {0, 1}
    node.arrive(2, 2)
    return node


def test_a_dropped_one_is_not_waited_for_and_joins_when_the_cohort_comes_by() -> None:
    node = straggling()
    for layer in (3, 0, 1):
        node.now += ROUND_TRIP
        node.arrive(layer, 0, 1)
        assert node.served() == {0, 1}, "2 waits for them, not they for 2"
    node.now += ROUND_TRIP
    node.arrive(2, 0, 1)
    assert node.served() == {0, 1, 2}
    node.now += ROUND_TRIP
    node.arrive(3, 0, 1)
    assert node.served() == set(), "2 is of the cohort again"
    node.arrive(3, 2)
    assert node.served() == {0, 1, 2}


def test_one_that_misses_twice_in_a_step_goes_on_alone_to_its_end() -> None:
    node = straggling()
    for layer in (3, 0, 1, 2):
        node.now += ROUND_TRIP
        node.arrive(layer, 0, 1)
        node.serve()
    node.arrive(3, 0, 1)
    node.wait()
    assert node.served() == {0, 1}, "2 misses again"
    node.arrive(3, 2)
    assert node.served() == {2}, "and needn't wait for a whole step once more"
    node.now += ROUND_TRIP
    node.arrive(0, 0, 1, 2)
    node.served()
    node.now += ROUND_TRIP
    node.arrive(1, 0, 1)
    assert node.served() == set(), "a new step, a new try"


def test_slow_ones_get_a_limited_share_of_the_time() -> None:
    node = straggling()
    for layer in (3, 0, 1, 2):
        node.now += ROUND_TRIP
        node.arrive(layer, 0, 1)
        node.serve()
    node.arrive(3, 0, 1)
    node.wait()
    node.serve()
    node.arrive(3, 2)
    batch = node.gather.next(node.now)
    assert batch
    assert set(batch.rows) == {2}
    assert not batch.cohort
    node.gather.served(batch, node.now, node.now + 1.0)
    node.now += 1.0
    node.arrive(4, 2)
    share = LIMITS.alone_share / 3
    assert node.wait() == pytest.approx(1 / share - 1)
    assert node.served() == {2}


def test_a_resting_or_dead_one_is_not_waited_for() -> None:
    node = Node(0, 1, 2)
    node.together(0, 1, 2)
    node.gather.rest(2, 0)
    node.arrive(FIRST, 0)
    assert node.served() == set()
    node.gather.left(1)
    assert node.served() == {0}


def test_what_a_dead_one_had_sent_is_forgotten() -> None:
    node = Node(0)
    node.arrive(FIRST, 0)
    node.gather.left(0)
    assert node.gather.next(99.0) is None
    assert node.gather.deadline() is None
    node.gather.joined(0)
    node.arrive(FIRST, 0)
    assert node.served() == {0}


def test_a_message_without_rows_counts_as_arrived_and_needs_no_serving() -> None:
    node = Node(0, 1)
    node.together(0, 1)
    node.arrive(FIRST, 1, rows=0)
    assert node.gather.deadline() is None
    node.arrive(FIRST, 0, rows=3)
    batch = node.serve()
    assert batch
    assert batch.rows == {0: 3}
    assert batch.cohort == {0, 1}


def test_a_later_message_says_that_the_layers_before_are_passed() -> None:
    node = Node(0, 1)
    node.together(0, 1)
    node.arrive(FIRST, 1, rows=0)
    node.arrive(1, 1, rows=2)
    node.arrive(FIRST, 0)
    assert node.served() == {0}, "1 has passed the first layer without rows"
    assert node.served() == set(), "0 is on its way to the layer where 1 waits"
    node.arrive(1, 0)
    assert node.served() == {0, 1}


def test_a_newcomer_without_rows_at_the_first_layer_joins_there_too() -> None:
    node = Node(0, 1)
    node.together(0, 1)
    node.gather.joined(2)
    node.arrive(FIRST, 2, rows=0)
    node.arrive(FIRST, 0, 1)
    batch = node.serve()
    assert batch
    assert batch.cohort == {0, 1, 2}


def test_others_take_over_from_a_silent_cohort() -> None:
    node = Node(0, 1, 2)
    node.arrive(FIRST, 0)
    assert node.served() == {0}
    node.now += ROUND_TRIP
    node.arrive(1, 0)
    assert node.served() == {0}
    node.arrive(FIRST, 1, 2)
    assert node.wait() < LIMITS.step.cap, "0 isn't heard of"
    batch = node.serve()
    assert batch
    assert batch.cohort == {1, 2}
    assert batch.dropped == {0}


def test_of_complete_gathers_the_oldest_goes_first() -> None:
    node = Node(0, 1, micro_batches=3)
    for micro_batch in (2, 0, 1):
        node.now += 1.0
        node.arrive(FIRST, 0, micro_batch=micro_batch)
    order = [batch.micro_batch for batch in iter(node.serve, None)]
    assert order == [2, 0, 1]


def test_one_long_wait_does_not_justify_longer_ones() -> None:
    node = Node(0, 1, 2)
    node.together(0, 1, 2)
    waits = []
    for layer in (0, 1, 2, 3) * 3:
        node.now += ROUND_TRIP
        node.arrive(layer, 0, 1)
        if layer == FIRST:  # In time there, late everywhere else.
            node.arrive(layer, 2)
        elif node.gather.deadline() != node.now:
            waits.append(node.wait())
        node.serve()
        if layer == 3:
            node.gather.left(2)
            node.gather.joined(2)
    assert len(waits) > 1
    assert max(waits) < 2 * ROUND_TRIP


def test_rows_that_were_not_served_are_never_written_over() -> None:
    node = Node(7)
    node.arrive(FIRST, 7, rows=5)
    for layer in (FIRST, 1):
        with pytest.raises(ProtocolError, match="while its 5 rows of layer 0"):
            node.arrive(layer, 7)
    with pytest.raises(ProtocolError, match="rests in micro-batch 0 while its 5 rows"):
        node.gather.rest(7, 0)
    assert node.served() == {7}


def test_strangers_are_refused() -> None:
    node = Node(0)
    with pytest.raises(ProtocolError, match="attention node 1 is no member"):
        node.arrive(FIRST, 1)
    with pytest.raises(ProtocolError, match="micro-batch 4, there are 1"):
        node.arrive(FIRST, 0, micro_batch=4)
    node.gather.left(5)


def test_limits_without_a_bound_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 < floor <= cap"):
        Wait(1.5, 0.1, float("inf"))
    with pytest.raises(ConfigError, match="0 < floor <= cap"):
        Wait(1.5, 0.2, 0.1)
    with pytest.raises(ConfigError, match="alone_share"):
        GatherLimits(alone_share=0.0)


class AnyTraffic(RuleBasedStateMachine):
    """Attention nodes that follow the protocol and nothing else, at any times."""

    LAYERS = 3
    MICRO_BATCHES = 2

    @initialize(sources=st.integers(1, 4))
    def begin(self, sources: int) -> None:
        self.gather = Gather(self.MICRO_BATCHES, FIRST, LIMITS)
        self.now = 0.0
        self.sent = self.answered = self.lost = 0
        self.next_layer: dict[tuple[int, int], int] = {}
        self.waiting: dict[tuple[int, int], tuple[int, int]] = {}  # -> (layer, rows)
        self.members = set(range(sources))
        for source in self.members:
            self.gather.joined(source)

    @property
    def free(self) -> list[tuple[int, int]]:
        """(source, micro-batch) that may speak: nothing of theirs is unanswered."""
        pairs = ((s, mb) for s in sorted(self.members) for mb in range(self.MICRO_BATCHES))
        return [pair for pair in pairs if pair not in self.waiting]

    @precondition(lambda self: self.free)
    @rule(data=st.data(), rows=st.sampled_from([0, 1, 5]), skip=st.booleans())
    def speak(self, data: st.DataObject, rows: int, skip: bool) -> None:
        pair = data.draw(st.sampled_from(self.free))
        layer = self.next_layer.get(pair, FIRST)
        if skip:  # A message without rows that was superseded before anybody looked.
            layer = (layer + 1) % self.LAYERS
        self.gather.arrived(*pair, layer, rows, self.now)
        self.next_layer[pair] = (layer + 1) % self.LAYERS
        if rows:
            self.waiting[pair] = layer, rows
            self.sent += 1

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def rest(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.free))
        self.gather.rest(*pair)
        self.next_layer.pop(pair, None)

    @rule(source=st.integers(0, 3))
    def leave_or_join(self, source: int) -> None:
        if source not in self.members:
            self.members.add(source)
            self.gather.joined(source)
            return
        self.members.remove(source)
        self.gather.left(source)
        for pair in [pair for pair in self.waiting if pair[0] == source]:
            del self.waiting[pair]
            self.lost += 1
        self.next_layer = {p: layer for p, layer in self.next_layer.items() if p[0] != source}

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(took=st.sampled_from([0.0, 0.1, 1.0]))
    def serve(self, took: float) -> None:
        batch = self.gather.next(self.now)
        if batch is None:
            return
        self.check(batch)
        started, self.now = self.now, self.now + took
        self.gather.served(batch, started, self.now)

    def check(self, batch: Batch) -> None:
        """A batch is all that waits at one place, each message for the first time."""
        here = {
            source: rows
            for (source, mb), (layer, rows) in self.waiting.items()
            if (mb, layer) == (batch.micro_batch, batch.layer)
        }
        assert batch.rows == here
        assert batch.rows
        assert batch.cohort <= self.members
        assert batch.cohort.isdisjoint(batch.dropped)
        for source in batch.rows:
            del self.waiting[source, batch.micro_batch]
            self.answered += 1

    @invariant()
    def deadlines_hold(self) -> None:
        deadline = self.gather.deadline()
        assert (deadline is None) == (not self.waiting)
        if deadline is not None:
            assert deadline <= self.now + LIMITS.step.cap
            would_serve = deepcopy(self.gather).next(self.now) is not None
            assert (deadline <= self.now) == would_serve

    def teardown(self) -> None:
        """With nothing else happening, the deadlines alone bring everything home."""
        for _ in range(len(getattr(self, "waiting", ()))):
            deadline = self.gather.deadline()
            if deadline is None:
                break
            self.now = max(self.now, deadline)
            batch = self.gather.next(self.now)
            assert batch, "the deadline promised one"
            self.check(batch)
            self.gather.served(batch, self.now, self.now)
        assert not getattr(self, "waiting", None)
        assert getattr(self, "sent", 0) == getattr(self, "answered", 0) + getattr(self, "lost", 0)


TestAnyTraffic = AnyTraffic.TestCase
TestAnyTraffic.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
