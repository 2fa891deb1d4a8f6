"""What the supervisor tells nodes, from the first to a membership, and through changes."""

from dataclasses import replace

import pytest

from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.messages.from_child import (
    LinkLost,
    Loaded,
    Opened,
    Prepared,
    Release,
    Renew,
    Resize,
)
from megainfer.messages.message import Role
from megainfer.messages.to_child import Enter, Measure, Meet, Prepare, Resized, Serve
from megainfer.messages.weights import GivingNode
from megainfer.supervise.assembly import LINK_SECONDS, MEET_SECONDS
from megainfer.supervise.operations import RENEW_SECONDS
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_assembly import A0, A1, A2, E0, E1, E2, Instance, started, two_of_each


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = write_checkpoint("olmoe", "mha", tmp_path_factory.mktemp("model"))
    return two_of_each(folder)


def test_from_the_first_fork_to_the_first_membership(plan: Plan) -> None:
    instance = Instance(plan)
    instance.fork(A0, A1, E0)
    instance.run()
    assert instance.told(Meet, clear=False) == [A0, A1]
    assert instance.told(Serve) == []  # not before all are there
    instance.fork(E1)
    instance.run()
    assert instance.told(Serve, clear=False) == [A0, A1, E0, E1]
    assert set(instance.told(Enter)) == {A0, A1, E0, E1}
    assert instance.members == ((0, 1), (0, 1))
    assert instance.announced == [instance.assembly.membership]
    instance.run()
    assert instance.sent == []  # nothing new, nothing to say


def test_m_is_measured_between_nodes_that_have_met(plan: Plan) -> None:
    measuring = replace(plan, micro_batches=None)
    instance = Instance(measuring)
    instance.slow = {Measure}
    instance.fork(*instance.assembly.wanted)
    instance.run()
    assert instance.told(Measure) == [A0, A1, E0, E1]
    # One dies meanwhile: the others wait for its answers, so all start again.
    assert instance.assembly.died(E1) == [A0, A1, E0]
    for node in (A0, A1, E0):
        assert instance.assembly.died(node) == []
    instance.slow = set()
    for node in instance.assembly.wanted:
        instance.fork(node)
    instance._said = [(node, Loaded([(1, 1e-3)])) for node, _ in instance._said]
    instance.run()
    assert instance.told(Measure, clear=False) == [A0, A1, E0, E1]
    assert instance.members == ((0, 1), (0, 1))
    assert instance.assembly.serve is not None


def test_an_attention_node_leaves_at_once_and_comes_back(plan: Plan) -> None:
    instance = started(plan)
    epoch = instance.epoch
    instance.assembly.died(A1)
    instance.run()
    assert instance.members == ((0,), (0, 1))
    assert instance.epoch == epoch + 1
    assert set(instance.told(Enter)) == {A0, E0, E1}
    instance.fork(A1)
    instance.run()
    assert instance.told(Meet, clear=False) == [A1, A1]
    assert instance.members == ((0, 1), (0, 1))
    assert instance.epoch == epoch + 2


def test_an_expert_node_without_replicas_is_waited_for(plan: Plan) -> None:
    instance = started(plan)
    epoch = instance.epoch
    instance.assembly.died(E0)
    instance.run()
    assert instance.sent == []
    assert instance.epoch == epoch
    instance.fork(E0)
    instance.run()
    # The same nodes, but one of them is another process.
    assert instance.members == ((0, 1), (0, 1))
    assert instance.epoch == epoch + 1
    assert set(instance.told(Enter)) == {A0, A1, E0, E1}


def test_an_expert_node_with_replicas_is_done_without(plan: Plan) -> None:
    config = replace(plan.config, expert_replicas=4)
    instance = started(make_plan(config, plan.folder, read_machine()))
    instance.assembly.died(E0)
    instance.run()
    assert instance.members == ((0, 1), (1,))
    assert set(instance.told(Enter)) == {A0, A1, E1}
    assert instance.assembly.membership is not None
    assert instance.assembly.membership.placement.holders == {1}
    instance.fork(E0)
    instance.run()
    assert instance.members == ((0, 1), (0, 1))
    assert instance.assembly.membership.placement == instance.assembly.placement


def test_all_attention_nodes_dead(plan: Plan) -> None:
    instance = started(plan)
    epoch = instance.epoch
    for node in (A0, A1):
        instance.assembly.died(node)
    instance.run()
    assert instance.epoch == epoch  # nobody to tell
    instance.fork(A1)
    instance.run()
    assert instance.members == ((1,), (0, 1))


def test_a_double_fault(plan: Plan) -> None:
    instance = started(plan)
    instance.assembly.died(E0)
    instance.fork(E0)
    instance.slow = {Meet}
    instance.run()
    instance.assembly.died(A0)  # while it was to meet the new one
    instance.slow = set()
    instance.run()
    assert instance.members == ((0, 1), (0, 1))  # the present one still; E0 was not met by A1
    instance.assembly.died(E0)
    instance.fork(E0, A0)
    instance.run()
    assert instance.members == ((0, 1), (0, 1))
    assert instance.assembly.complete


def test_a_lost_connection_is_made_anew_in_another_epoch(plan: Plan) -> None:
    instance = started(plan)
    epoch = instance.epoch
    instance.assembly.hear(A0, LinkLost(1, 7))  # of an incarnation that isn't any more
    instance.run()
    assert instance.sent == []
    instance.assembly.hear(A0, LinkLost(1, 0))
    instance.run()
    assert instance.sent == []  # it may be dead, and that not be known yet
    instance.now += 2 * LINK_SECONDS
    instance.run()
    assert instance.told(Meet, clear=False) == [A0]
    assert set(instance.told(Enter)) == {A0, A1, E0, E1}
    assert instance.epoch == epoch + 1


def test_a_lost_connection_to_one_that_is_dead_is_its_death(plan: Plan) -> None:
    instance = started(plan)
    instance.assembly.hear(A0, LinkLost(1, 0))
    instance.assembly.died(E1)
    instance.fork(E1)
    instance.now += 2 * LINK_SECONDS
    instance.run()
    assert instance.told(Meet) == [A0, A1]


def test_who_does_not_meet_in_time_is_named(plan: Plan) -> None:
    instance = started(plan)
    instance.assembly.died(E1)
    instance.slow = {Meet}
    instance.fork(E1)
    instance.run()
    assert instance.assembly.late() == []
    instance.now += MEET_SECONDS + 1
    assert instance.assembly.late() == [(0, 1), (1, 1)]


def change(instance: Instance, wish: Resize | Release | Renew) -> Resized | None:
    instance.answers.clear()
    instance.operations.begin(wish, instance.answers.append)
    instance.run()
    return instance.answers[0] if instance.answers else None


def test_scaling_up_and_down(plan: Plan) -> None:
    instance = started(plan)
    assert change(instance, Resize(1, attention=3, experts=3)) is None
    assert instance.assembly.needed == [A0, A1, A2, E0, E1, E2]
    assert instance.members == ((0, 1), (0, 1))
    assert instance.assembly.to_load(2).holders == {0, 1, 2}
    instance.fork(A2, E2)
    instance.run()
    assert instance.members == ((0, 1, 2), (0, 1, 2))
    assert set(instance.told(Prepare)) == {E0, E1, E2}
    assert instance.answers == [Resized(1, [0, 1, 2], [0, 1, 2], 0.0)]

    done = change(instance, Resize(2, attention=1, experts=1))
    assert done == Resized(2, [0], [0], 0.0)
    assert instance.members == ((0,), (0,))
    assert instance.assembly.needed == [A0, E0]
    for node in (A1, A2, E1, E2):
        instance.assembly.died(node)
    instance.run()
    assert instance.members == ((0,), (0,))


def test_the_old_places_serve_until_the_new_ones_are_ready(plan: Plan) -> None:
    instance = started(plan)
    instance.slow = {Prepare}
    assert change(instance, Release(1, Role.EXPERT, 1)) is None
    assert instance.members == ((0, 1), (0, 1))
    assert instance.told(Prepare, clear=False) == [E0]
    ((_, prepare),) = [sent for sent in instance.sent if isinstance(sent[1], Prepare)]
    assert isinstance(prepare, Prepare)
    instance.assembly.hear(E0, Prepared(prepare.ticket))
    instance.run()
    assert instance.members == ((0, 1), (0,))
    assert instance.answers == [Resized(1, [0, 1], [0], 0.0)]


def test_who_dies_while_it_prepares_is_asked_again(plan: Plan) -> None:
    instance = started(plan)
    instance.slow = {Prepare}
    change(instance, Release(1, Role.EXPERT, 1))
    instance.assembly.died(E0)
    instance.slow = set()
    instance.fork(E0)
    assert instance.assembly.to_load(0) == instance.assembly.placement  # others serve by it
    instance.run()
    assert instance.members == ((0, 1), (0,))
    assert instance.answers == [Resized(1, [0, 1], [0], 0.0)]


def test_whom_an_expert_node_may_ask_for_experts(plan: Plan) -> None:
    """Others that give some; nobody where its last start ended before all was loaded."""
    instance = started(plan)
    assembly, givers = instance.assembly, instance.assembly.givers.for_start
    first, second = (GivingNode(node, "10.0.0.2", 7000 + node) for node in range(2))
    for node, giving in ((E0, first), (E1, second)):
        instance.say(node, Opened(gives_at=(giving.host, giving.port)))
    instance.run()
    assert (givers(E0), givers(E2)) == ((second,), (first, second))
    assert givers(A0) == ()
    assembly.died(E1)
    assert (givers(E0), givers(E1)) == ((), (first,))
    assembly.forked(E1, 1)
    assembly.died(E1)
    assert givers(E1) == (), "it was asked in vain: files are to be there now"
    instance.fork(E1)
    instance.run()
    assembly.died(E1)
    assert givers(E1) == (first,)
    instance.fork(E1)
    instance.run()
    instance.say(E1, Opened(gives_at=(second.host, second.port)))
    instance.run()
    change(instance, Release(1, Role.EXPERT, 1))
    (prepare,) = [m for node, m in instance.sent if isinstance(m, Prepare) and node == E0]
    assert prepare.givers == (second,)


def test_experts_that_can_not_be_loaded_stay(plan: Plan) -> None:
    instance = started(plan)
    instance.slow = {Prepare}
    change(instance, Release(1, Role.EXPERT, 1))
    (prepare,) = [m for _, m in instance.sent if isinstance(m, Prepare)]
    instance.assembly.hear(E0, Prepared(prepare.ticket, "can't read a file"))
    instance.run()
    assert instance.answers[0].error is not None
    assert "expert node 0 can't read a file" in instance.answers[0].error
    assert instance.members == ((0, 1), (0, 1))
    assert instance.assembly.complete


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (Resize(1, attention=17), "--attn must be 1 to 16, not 17; --max-attn-gpus at the start"),
        (Resize(1, experts=0), "--ffn must be 1 to 8, not 0"),
        (Release(1, Role.EXPERT, 5), "there is no expert node 5; there are: attention node 0, "),
        (Renew(1, Role.ATTENTION, 2), "there is no attention node 2"),
    ],
)
def test_wishes_that_can_not_be(plan: Plan, wish: Resize | Release | Renew, reason: str) -> None:
    done = change(started(plan), wish)
    assert done is not None
    assert done.error is not None
    assert done.error.startswith(reason)


def test_the_last_of_its_role_stays(plan: Plan) -> None:
    instance = started(plan)
    change(instance, Release(1, Role.ATTENTION, 0))
    done = change(instance, Release(2, Role.ATTENTION, 1))
    assert done is not None
    assert done.error == "attention node 1 is the last of its role; it stays"


def test_one_change_at_a_time(plan: Plan) -> None:
    instance = started(plan)
    assert change(instance, Resize(1, attention=3)) is None
    done = change(instance, Resize(2, attention=2))
    assert done is not None
    assert done.error is not None
    assert "another change of nodes is under way" in done.error


def test_starting_anew_goes_one_after_the_other(plan: Plan) -> None:
    instance = started(plan)
    assert change(instance, Renew(1)) is None
    for node in (A0, A1, E0, E1):
        assert instance.dismissed == [node]
        without = node in (E0, E1) or node not in instance.assembly.members()
        assert without  # an expert node that nobody can do without stays a member till it ends
        instance.dismissed.clear()
        instance.assembly.died(node)
        assert instance.operations.ended(node)
        instance.run()
        assert instance.dismissed == []  # the next waits for this one
        instance.fork(node)
        instance.run()
    assert instance.answers == [Resized(1, [0, 1], [0, 1], 0.0)]
    assert instance.members == ((0, 1), (0, 1))


def test_starting_anew_one_that_is_dead_waits_for_its_successor(plan: Plan) -> None:
    instance = started(plan)
    instance.assembly.died(E1)
    assert change(instance, Renew(1, Role.EXPERT, 1)) is None
    instance.fork(E1)
    instance.run()
    assert instance.answers == [Resized(1, [0, 1], [0, 1], 0.0)]
    assert instance.members == ((0, 1), (0, 1))


def test_starting_anew_has_an_end(plan: Plan) -> None:
    instance = started(plan)
    change(instance, Renew(1, Role.ATTENTION, 1))
    instance.now += RENEW_SECONDS + 1
    instance.run()
    assert instance.answers[0].error == f"attention node 1 was not back after {RENEW_SECONDS:g} s"
    assert instance.members == ((0, 1), (0, 1))  # it never ended, and may be a member again


def test_a_newcomer_that_never_serves_is_given_back(plan: Plan) -> None:
    instance = started(plan)
    change(instance, Resize(1, attention=3))
    instance.fork(A2)
    assert instance.assembly.can_do_without(A2)
    assert not instance.assembly.can_do_without(A0)
    instance.assembly.died(A2)
    instance.assembly.refuse("attention node 2 died, as often as it was started")
    instance.run()
    assert instance.answers == [
        Resized(1, [0, 1], [0, 1], 0.0, "attention node 2 died, as often as it was started")
    ]
    assert instance.assembly.needed == [A0, A1, E0, E1]


def test_what_was_refused_earlier_is_no_answer_to_what_comes_later(plan: Plan) -> None:
    instance = started(plan)
    instance.assembly.refuse("experts stay where they are")
    done = change(instance, Release(1, Role.ATTENTION, 0))
    assert done == Resized(1, [1], [0, 1], 0.0)


def test_a_colocated_instance_has_no_nodes_to_change(plan: Plan) -> None:
    config = replace(plan.config, colocated=True, attn_gpus=1, ffn_gpus=1)
    instance = Instance(make_plan(config, plan.folder, read_machine()))
    instance.fork(A0)
    instance.run()
    assert instance.members == ((0,), (0,))
    done = change(instance, Resize(1, attention=2))
    assert done is not None
    assert done.error == "a colocated instance is one process; there are no nodes to change"
