"""The ping-pong order, and its invariants under any order of replies."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from megainfer.errors import ProtocolError
from megainfer.pipeline import SAMPLER, PingPong


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


def test_a_step_awaits_its_tokens_while_another_runs() -> None:
    pingpong = in_flight((1, ()), (2, ()), layers=2)
    pingpong.sampling(0)
    assert pingpong.awaiting(0) == {SAMPLER}
    assert pingpong.next() == 1
    pingpong.dispatched(1, 0, {0})
    assert pingpong.next() is None
    with pytest.raises(AssertionError, match="micro-batch 0 had no turn, it is awaiting its tok"):
        pingpong.finished(0)
    pingpong.sampled(0)
    assert pingpong.next() == 0
    with pytest.raises(AssertionError, match="micro-batch 0 has its tokens"):
        pingpong.sampling(0)
    pingpong.finished(0)
    assert pingpong.idle() == (0,)


def test_a_dependent_runs_on_while_tokens_are_awaited_but_finishes_after() -> None:
    pingpong = in_flight((1, ()), (2, (1,)), layers=1)
    pingpong.sampling(0)
    pingpong.sampling(1)
    pingpong.sampled(1)
    assert pingpong.next() is None, "step 1 has no tokens yet"
    with pytest.raises(AssertionError, match="had no turn"):
        pingpong.finished(1)
    pingpong.sampled(0)
    pingpong.finished(0)
    assert pingpong.next() == 1
    pingpong.finished(1)


def test_an_abandoned_step_drains_until_all_have_replied() -> None:
    pingpong = in_flight((1, ()), (2, (1,)))
    pingpong.dispatched(0, 0, {0, 1})
    assert pingpong.abandoned(0) == (0, 1)
    assert pingpong.is_draining(0)
    assert pingpong.idle() == (1,), "step 2 awaited nobody"
    pingpong.replied(0, 0, 1)
    with pytest.raises(AssertionError, match="not idle"):
        pingpong.start(0, 3)
    with pytest.raises(ProtocolError, match="expert node 1 for layer 0"):
        pingpong.replied(0, 0, 1)
    assert pingpong.awaiting(0) == {0}
    assert pingpong.next() is None
    with pytest.raises(AssertionError, match="abandoned before"):
        pingpong.abandoned(0)
    pingpong.replied(0, 0, 0)
    assert pingpong.idle() == (0, 1)
    pingpong.start(0, 3)
    assert not pingpong.is_draining(0)


def test_a_step_that_drains_is_not_abandoned_again_with_those_it_depended_on() -> None:
    pingpong = in_flight((1, ()), (2, (1,)))
    pingpong.dispatched(0, 0, ())
    pingpong.dispatched(1, 0, {0})
    pingpong.abandoned(1)
    assert pingpong.abandoned(0) == (0,)
    assert pingpong.is_draining(1)


def test_tokens_of_an_abandoned_step_are_awaited_too() -> None:
    pingpong = in_flight((1, ()))
    pingpong.sampling(0)
    pingpong.abandoned(0)
    assert pingpong.awaiting_sampler == {0}
    pingpong.sampled(0)
    assert pingpong.idle() == (0,)
    assert not pingpong.awaiting_sampler


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
    """Replies and tokens come in any order; the node runs what `next` says, as its loop would."""

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
        self.sampling: set[int] = set()  # micro-batches that await their tokens
        self.sampled: set[int] = set()  # steps that have theirs
        self.order: list[int] = []  # micro-batches by their latest start or dispatch

    def ready(self) -> list[int]:
        """By the text of the rule, not by its code."""
        waiting = {mb for mb, _, _ in self.due} | self.sampling
        return [mb for mb in self.order if mb not in waiting and not self.held(self.step_of[mb])]

    def held(self, step: int) -> bool:
        before = self.depends_on[step] - self.finished
        if step in self.sampled:
            return bool(before)
        return any(self.layers_run[other] <= self.layers_run[step] for other in before)

    def moves_last(self, mb: int) -> None:
        self.order = [other for other in self.order if other != mb] + [mb]

    @precondition(lambda self: self.pingpong.idle())
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        mb = data.draw(st.sampled_from(self.pingpong.idle()))
        assert not self.owes(mb)
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
        if step in self.sampled:
            assert not self.depends_on[step] - self.finished, "a dependent ends first"
            self.pingpong.finished(mb)
            self.finished.add(step)
            self.forget(mb)
            return
        if layer == self.LAYERS:
            self.pingpong.sampling(mb)
            self.layers_run[step] += 1
            self.sampling.add(mb)
            self.moves_last(mb)
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

    @precondition(lambda self: self.sampling)
    @rule(data=st.data())
    def sample(self, data: st.DataObject) -> None:
        mb = data.draw(st.sampled_from(sorted(self.sampling)))
        self.sampling.remove(mb)
        self.pingpong.sampled(mb)
        if mb in self.step_of:
            self.sampled.add(self.step_of[mb])

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

    @precondition(lambda self: self.step_of)
    @rule()
    def abandon_all(self) -> None:
        """Expert nodes of an epoch that has ended owe nothing; a device ends what it began."""
        by_step = sorted(self.step_of, key=lambda mb: self.step_of[mb])
        assert self.pingpong.all_abandoned() == tuple(by_step)
        for mb in by_step:
            self.forget(mb)
        self.due.clear()

    def forget(self, mb: int) -> None:
        """What its peers owe is still to come."""
        del self.step_of[mb]
        self.order.remove(mb)

    def owes(self, mb: int) -> set[int]:
        peers = {node for other, _, node in self.due if other == mb}
        return peers | ({SAMPLER} if mb in self.sampling else set())

    @invariant()
    def the_oldest_that_is_ready_runs(self) -> None:
        assert self.pingpong.next() == next(iter(self.ready()), None)

    @invariant()
    def never_stuck(self) -> None:
        if self.step_of and not self.due and not self.sampling:
            assert self.pingpong.next() is not None

    @invariant()
    def awaits_what_is_due(self) -> None:
        for mb in range(self.MICRO_BATCHES):
            assert self.pingpong.awaiting(mb) == self.owes(mb)
        assert self.pingpong.awaiting_sampler == self.sampling

    @invariant()
    def idle_is_who_has_no_step_and_is_owed_nothing(self) -> None:
        for mb in range(self.MICRO_BATCHES):
            idle, draining = mb in self.pingpong.idle(), self.pingpong.is_draining(mb)
            assert idle == (mb not in self.step_of and not self.owes(mb))
            assert draining == (mb not in self.step_of and bool(self.owes(mb)))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
