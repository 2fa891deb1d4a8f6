"""The ping-pong order, its invariants under any order of replies, and the paper's formulas."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from megainfer.errors import ConfigError, ProtocolError
from megainfer.pipeline import (
    Curve,
    PingPong,
    StageProfile,
    choose_micro_batches,
    iteration_bounds,
    layer_period,
    min_micro_batches,
    predicted_timeline,
    total_time,
)


def in_flight(*steps: tuple[int, tuple[int, ...]], layers: int = 4) -> PingPong:
    """A pipeline with one micro-batch a (step, dependencies)."""
    pingpong = PingPong(len(steps), layers)
    for mb, (step, depends_on) in enumerate(steps):
        pingpong.start(mb, step, depends_on)
    return pingpong


def test_micro_batches_take_turns_in_the_order_of_their_dispatches() -> None:
    pingpong = in_flight((1, ()), (2, ()))
    assert pingpong.next() == 0
    pingpong.dispatched(0, 0, {0, 1})
    assert pingpong.next() == 1
    pingpong.dispatched(1, 0, {0, 1})
    assert pingpong.next() is None
    for mb, node in ((1, 0), (1, 1), (0, 1)):
        pingpong.replied(mb, 0, node)
    assert pingpong.next() == 1, "micro-batch 0 still waits for node 0"
    assert pingpong.awaiting(0) == {0}
    pingpong.replied(0, 0, 0)
    assert pingpong.next() == 0, "both are ready, 0 was dispatched first"


def test_a_dispatch_without_rows_is_ready_at_once_but_goes_behind_the_others() -> None:
    pingpong = in_flight((1, ()), (2, ()))
    pingpong.dispatched(0, 0, ())
    assert pingpong.next() == 1
    pingpong.dispatched(1, 0, {0})
    assert pingpong.next() == 0


def test_layers_without_experts_are_skipped() -> None:
    pingpong = in_flight((1, ()), layers=6)
    assert pingpong.next_layer(0) == 0
    pingpong.dispatched(0, 3, ())
    assert pingpong.next_layer(0) == 4
    with pytest.raises(AssertionError, match=r"layer 3, not one of 4\.\.5"):
        pingpong.dispatched(0, 3, ())


def test_a_dependent_chunk_stays_behind_at_every_layer_and_finishes_after() -> None:
    pingpong = in_flight((1, ()), (2, (1,)), layers=2)
    pingpong.dispatched(0, 0, {0})
    assert pingpong.next() == 1, "layer 0 of step 1 has run"
    pingpong.dispatched(1, 0, ())
    assert pingpong.next() is None, "layer 1 of step 1 has not"
    with pytest.raises(AssertionError, match="had no turn"):
        pingpong.dispatched(1, 1, ())
    pingpong.replied(0, 0, 0)
    assert pingpong.next() == 0
    pingpong.dispatched(0, 1, {0})
    pingpong.dispatched(1, 1, ())
    with pytest.raises(AssertionError, match="had no turn"):
        pingpong.finished(1)
    pingpong.replied(0, 1, 0)
    pingpong.finished(0)
    pingpong.finished(1)
    assert pingpong.idle() == (0, 1)


def test_a_dependency_that_has_finished_holds_nobody_up() -> None:
    pingpong = in_flight((7, (3, 5)))
    assert pingpong.next() == 0


def test_abandoning_takes_the_direct_and_indirect_dependents_along() -> None:
    pingpong = PingPong(5, 4)
    for mb, step, depends_on in ((4, 1, ()), (3, 2, (1,)), (0, 3, ()), (1, 4, (2,)), (2, 5, (3,))):
        pingpong.start(mb, step, depends_on)
    assert pingpong.abandoned(4) == (4, 3, 1)
    assert pingpong.idle() == (1, 3, 4)
    assert pingpong.abandoned(0) == (0, 2)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ((0, 0, 2), "awaiting layer 0 from expert nodes 0, 1"),
        ((0, 1, 0), "awaiting layer 0"),
        ((1, 0, 0), "about to run layer 0"),
        ((2, 0, 0), "idle"),
        ((9, 0, 0), "idle"),
    ],
)
def test_a_reply_that_nobody_waits_for_is_the_peers_fault(
    reply: tuple[int, int, int], text: str
) -> None:
    pingpong = PingPong(3, 4)
    pingpong.start(0, 1)
    pingpong.start(1, 2)
    pingpong.dispatched(0, 0, {0, 1})
    with pytest.raises(ProtocolError, match=text):
        pingpong.replied(*reply)
    assert pingpong.awaiting(0) == {0, 1}


def test_a_second_reply_of_one_node_is_refused() -> None:
    pingpong = in_flight((1, ()))
    pingpong.dispatched(0, 0, {0, 1})
    pingpong.replied(0, 0, 0)
    with pytest.raises(ProtocolError, match="expert node 0 for layer 0"):
        pingpong.replied(0, 0, 0)


def test_starts_that_contradict_the_state_are_our_own_bugs() -> None:
    pingpong = PingPong(2, 4)
    pingpong.start(0, 5)
    with pytest.raises(AssertionError, match="not idle"):
        pingpong.start(0, 6)
    with pytest.raises(AssertionError, match="step 5 is in flight"):
        pingpong.start(1, 5)
    with pytest.raises(AssertionError, match=r"step 6 depends on \[6\]"):
        pingpong.start(1, 6, (6,))
    with pytest.raises(AssertionError, match="no micro-batch 2"):
        pingpong.start(2, 6)


class AnyOrder(RuleBasedStateMachine):
    """Replies come in any order; the node runs what `next` says, as its loop would."""

    LAYERS = 3
    MICRO_BATCHES = 3

    def __init__(self) -> None:
        super().__init__()
        self.pingpong = PingPong(self.MICRO_BATCHES, self.LAYERS)
        self.steps = 0
        self.step_of: dict[int, int] = {}
        self.depends_on: dict[int, frozenset[int]] = {}
        self.layers_run: dict[int, int] = {}  # step -> attention halves that have run
        self.finished: set[int] = set()
        self.due: list[tuple[int, int, int]] = []  # (micro-batch, layer, node) yet to reply
        self.order: list[int] = []  # micro-batches by their latest start or dispatch

    def ready(self) -> list[int]:
        """By the text of the rule, not by its code."""
        waiting = {mb for mb, _, _ in self.due}
        return [mb for mb in self.order if mb not in waiting and not self.held(self.step_of[mb])]

    def held(self, step: int) -> bool:
        before = self.depends_on[step] - self.finished
        return any(self.layers_run[other] <= self.layers_run[step] for other in before)

    def moves_last(self, mb: int) -> None:
        self.order = [other for other in self.order if other != mb] + [mb]

    @precondition(lambda self: self.pingpong.idle())
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        mb = data.draw(st.sampled_from(self.pingpong.idle()))
        known = sorted(set(self.step_of.values()) | self.finished)
        depends_on = frozenset(data.draw(st.sets(st.sampled_from(known)))) if known else frozenset()
        self.steps += 1
        self.pingpong.start(mb, self.steps, depends_on)
        self.step_of[mb] = self.steps
        self.depends_on[self.steps] = depends_on
        self.layers_run[self.steps] = 0
        self.moves_last(mb)

    @rule(awaiting=st.frozensets(st.integers(0, 2)))
    def run_next(self, awaiting: frozenset[int]) -> None:
        mb = self.pingpong.next()
        if mb is None:
            return
        step = self.step_of[mb]
        layer = self.layers_run[step]
        assert self.pingpong.next_layer(mb) == layer
        if layer == self.LAYERS:
            self.pingpong.finished(mb)
            self.finished.add(step)
            self.forget(mb)
            return
        for other in self.depends_on[step] - self.finished:
            assert self.layers_run[other] > layer, "a dependent overtook"
        self.pingpong.dispatched(mb, layer, awaiting)
        self.layers_run[step] += 1
        self.due += [(mb, layer, node) for node in awaiting]
        self.moves_last(mb)

    @precondition(lambda self: self.due)
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        message = data.draw(st.sampled_from(self.due))
        self.due.remove(message)
        self.pingpong.replied(*message)

    @precondition(lambda self: self.step_of)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        mb = data.draw(st.sampled_from(sorted(self.step_of)))
        expected = {self.step_of[mb]}
        for step in sorted(self.step_of.values()):
            if self.depends_on[step] & expected:
                expected.add(step)
        ended = self.pingpong.abandoned(mb)
        assert ended[0] == mb
        assert {self.step_of[other] for other in ended} == expected
        for other in ended:
            self.forget(other)

    def forget(self, mb: int) -> None:
        del self.step_of[mb]
        self.order.remove(mb)
        self.due = [message for message in self.due if message[0] != mb]

    @invariant()
    def the_oldest_that_is_ready_runs(self) -> None:
        assert self.pingpong.next() == next(iter(self.ready()), None)

    @invariant()
    def never_stuck(self) -> None:
        if self.step_of and not self.due:
            assert self.pingpong.next() is not None

    @invariant()
    def awaits_what_is_due(self) -> None:
        for mb in range(self.MICRO_BATCHES):
            assert self.pingpong.awaiting(mb) == {n for other, _, n in self.due if other == mb}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    ("t_f", "t_c", "m"),
    [(1.0, 0.0, 2), (1.0, 0.5, 3), (1.0, 0.51, 4), (0.1, 0.05, 3), (1.0, 1.0, 4), (0.3, 0.15, 3)],
)
def test_the_least_m_is_the_papers(t_f: float, t_c: float, m: int) -> None:
    assert min_micro_batches(t_f, t_c) == m


def test_the_least_m_needs_a_time() -> None:
    with pytest.raises(ConfigError, match="t_f > 0"):
        min_micro_batches(0.0, 1.0)


seconds = st.floats(0.01, 1.0)


@given(t_a=seconds, t_e=seconds, share=st.floats(0, 1), layers=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_the_timeline_takes_the_total_time_where_nobody_stalls(
    t_a: float, t_e: float, share: float, layers: int
) -> None:
    t_c = share * max(t_a, t_e)
    m = min_micro_batches(max(t_a, t_e), t_c)
    spans = predicted_timeline(t_a, t_e, t_c, m, layers)
    assert max(span.end for span in spans) == pytest.approx(total_time(t_a, t_e, t_c, m, layers))


@given(t_f=seconds, share=st.floats(0, 1), layers=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_every_micro_batch_keeps_the_iteration_bounds_at_balance(
    t_f: float, share: float, layers: int
) -> None:
    t_c = share * t_f
    m = min_micro_batches(t_f, t_c)
    least, most = iteration_bounds(t_f, t_f, t_c, m, layers)
    spans = predicted_timeline(t_f, t_f, t_c, m, layers)
    for mb in range(m):
        own = [span for span in spans if span.micro_batch == mb]
        took = own[-1].end - own[0].start
        assert least * (1 - 1e-8) <= took <= most * (1 + 1e-8)


@given(t_a=seconds, t_e=seconds, t_c=st.floats(0, 1), m=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_the_timeline_settles_at_the_layer_period_for_any_m(
    t_a: float, t_e: float, t_c: float, m: int
) -> None:
    spans = predicted_timeline(t_a, t_e, t_c, m, 12)
    ends = [s.end for s in spans if s.micro_batch == m - 1 and s.kind == "expert"]
    assert ends[-1] - ends[-2] == pytest.approx(layer_period(t_a, t_e, t_c, m))


@given(t_a=seconds, t_e=seconds, t_c=st.floats(0, 1), m=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_timeline_is_one_that_the_pingpong_runs(
    t_a: float, t_e: float, t_c: float, m: int
) -> None:
    layers = 3
    spans = predicted_timeline(t_a, t_e, t_c, m, layers)
    pingpong = in_flight(*((mb, ()) for mb in range(m)), layers=layers)
    # At equal times the replies come first, as the node polls before it chooses.
    events = sorted(
        [(span.end, 0, span) for span in spans if span.kind == "combine"]
        + [(span.start, 1, span) for span in spans if span.kind == "attention"],
        key=lambda event: event[:2],
    )
    for _, _, span in events:
        if span.kind == "combine":
            pingpong.replied(span.micro_batch, span.layer, 0)
        else:
            assert pingpong.next() == span.micro_batch
            pingpong.dispatched(span.micro_batch, span.layer, {0})


def test_nobody_does_two_things_at_once_in_the_timeline() -> None:
    spans = predicted_timeline(1.0, 0.7, 0.3, 3, 5)
    for kind in ("attention", "expert"):
        own = sorted((span for span in spans if span.kind == kind), key=lambda span: span.start)
        assert all(a.end <= b.start + 1e-12 for a, b in pairwise(own))


def test_curves_are_straight_between_and_beyond_their_points() -> None:
    curve = Curve(((10, 1.0), (20, 2.0), (40, 3.0)))
    assert [curve.at(rows) for rows in (15, 20, 30, 60)] == pytest.approx([1.5, 2.0, 2.5, 4.0])
    assert curve.at(5) == pytest.approx(0.5)
    assert Curve(((10, 1.0), (20, 3.0))).at(1) == 0.0, "never negative"
    assert Curve(((10, 1.0),)).at(99) == 1.0


@pytest.mark.parametrize(
    "points", [(), ((2, 1.0), (2, 1.0)), ((1, -1.0),), ((1, math.nan),), ((1, math.inf),)]
)
def test_a_profile_that_cannot_be_is_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ConfigError, match="a profile"):
        Curve(points)


def linear(fixed: float, per_row: float) -> Curve:
    return Curve(((1, fixed + per_row), (1024, fixed + 1024 * per_row)))


def test_splitting_pays_where_computing_dominates() -> None:
    profile = StageProfile(linear(0, 1e-3), linear(0, 1e-3), linear(1e-6, 0))
    choice = choose_micro_batches(profile, 64, 4)
    assert choice.micro_batches == 3, "two leave the transfers uncovered, a fourth adds nothing"
    assert [p.micro_batches for p in choice.predictions] == [1, 2, 3, 4]
    assert choice.predictions[0].period == pytest.approx(2 * 0.064, rel=1e-3)


def test_splitting_does_not_pay_where_reading_the_experts_dominates() -> None:
    profile = StageProfile(linear(0, 1e-6), linear(1e-3, 0), linear(1e-6, 0))
    choice = choose_micro_batches(profile, 64, 4)
    assert choice.micro_batches == 1
    worse = [p.throughput for p in choice.predictions]
    assert worse == sorted(worse, reverse=True)


def test_micro_batches_beyond_the_batch_add_nothing() -> None:
    profile = StageProfile(linear(0, 1e-3), linear(0, 1e-3), linear(1e-3, 0))
    choice = choose_micro_batches(profile, 2, 8)
    assert choice.micro_batches == 2
    assert {p.throughput for p in choice.predictions[1:]} == {choice.predictions[1].throughput}


def test_choosing_names_what_is_wrong() -> None:
    profile = StageProfile(linear(0, 0), linear(0, 0), linear(0, 0))
    with pytest.raises(ConfigError, match="no time at all"):
        choose_micro_batches(profile, 4, 2)
    with pytest.raises(ConfigError, match="got 0 and 2"):
        choose_micro_batches(profile, 0, 2)
