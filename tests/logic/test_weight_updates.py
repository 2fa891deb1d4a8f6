"""Other weights come into force on all nodes or on none, and who comes later has the current."""

from dataclasses import replace
from pathlib import Path

import pytest

from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.messages.from_child import Entered, LinkLost, Met, Prepared, Resize, UpdateWeights
from megainfer.messages.to_child import Enter, Meet, Prepare, WeightsUpdated
from megainfer.supervise.assembly import LINK_SECONDS
from megainfer.supervise.roster import Node
from megainfer.supervise.weight_updates import UPDATE_SECONDS
from megainfer.topology import FOLDERS_OWN, WeightVersion
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_assembly import A0, A1, E0, E1, Instance, started, two_of_each

ALL = {A0, A1, E0, E1}
FIRST = WeightVersion(1, "step-1")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return two_of_each(write_checkpoint("olmoe", "mha", tmp_path_factory.mktemp("model")))


@pytest.fixture
def file(tmp_path: Path) -> str:
    """What nobody here reads, only holds."""
    path = tmp_path / "new.safetensors"
    path.write_bytes(b"weights")
    return str(path)


def asked(instance: Instance, file: str, ticket: int = 1, name: str | None = "step-1") -> None:
    instance.updating.begin(UpdateWeights(ticket, name, [file]), instance.updates.append)
    instance.run()


def entered(instance: Instance) -> dict[Node, WeightVersion]:
    """With which weights each node was last told to enter."""
    told = [(n, m.membership) for n, m in instance.sent if isinstance(m, Enter)]
    return {node: membership.weights for node, membership in told}


def prepares(instance: Instance) -> list[tuple[Node, Prepare]]:
    return [(node, m) for node, m in instance.sent if isinstance(m, Prepare)]


def test_all_load_them_before_any_enters_them(plan: Plan, file: str) -> None:
    instance = started(plan)
    instance.slow = {Prepare}
    asked(instance, file)
    assert {node for node, _ in prepares(instance)} == ALL
    ticket = prepares(instance)[0][1].ticket
    for node in (E1, A0, E0):
        instance.say(node, Prepared(ticket))
        instance.run()
        assert entered(instance) == {}
        assert instance.updates == []
    instance.say(A1, Prepared(ticket))
    instance.run()
    assert entered(instance) == dict.fromkeys(ALL, FIRST)
    assert len({m.membership.epoch for _, m in instance.sent if isinstance(m, Enter)}) == 1
    assert instance.updates == [WeightsUpdated(1, "step-1", 0.0)]


def test_it_is_done_only_when_all_have_entered(plan: Plan, file: str) -> None:
    instance = started(plan)
    instance.slow = {Enter}
    asked(instance, file)
    assert entered(instance) == dict.fromkeys(ALL, FIRST)
    for node in (A0, A1, E0, E1):
        assert instance.updates == []
        instance.say(node, Entered(instance.epoch))
        instance.run()
    assert [update.error for update in instance.updates] == [None]


def test_what_one_can_not_load_none_computes_with(plan: Plan, file: str) -> None:
    instance = started(plan)
    instance.slow = {Prepare}
    asked(instance, file)
    ticket = prepares(instance)[0][1].ticket
    for node in (A0, A1, E0):
        instance.say(node, Prepared(ticket))
    instance.say(E1, Prepared(ticket, "can't load them: no memory"))
    instance.run()
    (update,) = instance.updates
    assert update == WeightsUpdated(1, "0", 0.0, "expert node 1 can't load them: no memory")
    assert entered(instance) == {}
    # They are told to keep what they have, and so to forget what they have loaded.
    last = dict(prepares(instance))
    assert {node: m.weights.version for node, m in last.items()} == dict.fromkeys(ALL, FOLDERS_OWN)
    instance.say(E1, Prepared(ticket))  # too late
    instance.run()
    assert entered(instance) == {}


@pytest.mark.parametrize("victim", [A1, E0], ids=["attention", "expert"])
def test_a_death_before_the_decision_leaves_the_old_ones(
    plan: Plan, file: str, victim: Node
) -> None:
    instance = started(plan)
    instance.slow = {Prepare}
    asked(instance, file)
    instance.assembly.died(victim)
    instance.run()
    (update,) = instance.updates
    assert update.version == "0"
    assert "died while others were loaded" in str(update.error)
    assert instance.assembly.weights.version == FOLDERS_OWN  # which who comes back loads
    instance.slow = set()
    instance.fork(victim)
    instance.run()
    assert set(entered(instance).values()) == {FOLDERS_OWN}
    assert instance.members == ((0, 1), (0, 1))
    asked(instance, file, ticket=2)
    assert instance.updates[1] == WeightsUpdated(2, "step-1", 0.0)


def test_the_end_of_one_that_nobody_needs_ends_no_update(plan: Plan, file: str) -> None:
    instance = started(plan)
    instance.operations.begin(Resize(3, attention=1), instance.answers.append)
    instance.run()
    assert instance.members == ((0,), (0, 1))
    instance.slow = {Prepare}
    asked(instance, file)
    ticket = prepares(instance)[0][1].ticket
    instance.assembly.died(A1)  # it was told to end, and took its time
    for node in (A0, E0, E1):
        instance.say(node, Prepared(ticket))
    instance.run()
    assert instance.updates == [WeightsUpdated(1, "step-1", 0.0)]


def test_it_is_not_done_before_nodes_that_lost_each_other_have_met_again(
    plan: Plan, file: str
) -> None:
    instance = started(plan)
    instance.slow = {Prepare, Meet}
    asked(instance, file)
    ticket = prepares(instance)[0][1].ticket
    for node in (A0, A1):
        instance.say(node, LinkLost(1, 0))
    instance.run()
    instance.now += 2 * LINK_SECONDS
    for node in sorted(ALL):
        instance.say(node, Prepared(ticket))
    instance.run()
    assert entered(instance) == {}  # nobody can serve without expert node 1
    assert instance.updates == []
    for node in (A0, A1):
        instance.say(node, Met(1, 0))
    instance.run()
    assert entered(instance) == dict.fromkeys(ALL, FIRST)
    assert [update.error for update in instance.updates] == [None]


def test_who_dies_after_the_decision_comes_back_with_the_new_ones(plan: Plan, file: str) -> None:
    instance = started(plan)
    instance.slow = {Enter}
    asked(instance, file)
    instance.assembly.died(E0)
    instance.slow = set()
    instance.run()
    assert instance.updates == []  # others may not have entered them yet
    weights = instance.assembly.weights
    assert weights.version == FIRST
    assert Path(weights.files[0]).read_bytes() == b"weights"
    Path(file).unlink()
    assert Path(weights.files[0]).read_bytes() == b"weights"
    instance.fork(E0)
    instance.run()
    assert instance.updates == [WeightsUpdated(1, "step-1", 0.0)]
    assert entered(instance) == dict.fromkeys(ALL, FIRST)


def test_versions_are_counted_and_only_the_current_one_is_held(plan: Plan, file: str) -> None:
    instance = started(plan)
    asked(instance, file, name=None)
    (first,) = instance.assembly.weights.files
    asked(instance, file, 2, name=None)
    assert [update.version for update in instance.updates] == ["1", "2"]
    assert instance.assembly.weights.version == WeightVersion(2, "2")
    (second,) = instance.assembly.weights.files
    assert Path(second).exists()
    assert not Path(first).exists()


def test_it_waits_until_all_serve(plan: Plan, file: str) -> None:
    instance = started(plan)
    instance.assembly.died(A1)
    asked(instance, file)
    assert prepares(instance) == []
    instance.fork(A1)
    instance.run()
    assert instance.updates == [WeightsUpdated(1, "step-1", 0.0)]


def test_waiting_has_an_end(plan: Plan, file: str) -> None:
    instance = started(plan)
    instance.assembly.died(A1)
    asked(instance, file)
    instance.now += UPDATE_SECONDS + 1
    instance.run()
    assert "not all nodes served within" in str(instance.updates[0].error)
    instance.fork(A1)
    instance.slow = {Prepare}
    asked(instance, file, 2)
    instance.now += UPDATE_SECONDS + 1
    instance.run()
    assert "they were not loaded within" in str(instance.updates[1].error)


def test_one_change_at_a_time(plan: Plan, file: str) -> None:
    instance = started(plan)
    instance.slow = {Prepare}
    asked(instance, file)
    asked(instance, file, 2)
    assert instance.updates[0].ticket == 2
    assert "other weights are on their way" in str(instance.updates[0].error)
    instance.operations.begin(Resize(3, attention=3), instance.answers.append)
    assert "other weights are on their way" in str(instance.answers[0].error)


def test_not_while_it_starts(plan: Plan, file: str) -> None:
    instance = Instance(plan)
    asked(instance, file)
    assert "still starting" in str(instance.updates[0].error)


def test_files_that_are_not_there_are_named(plan: Plan, tmp_path: Path) -> None:
    instance = started(plan)
    asked(instance, str(tmp_path / "nowhere"))
    assert "nowhere can't be opened: No such file" in str(instance.updates[0].error)


def test_the_one_node_of_a_colocated_instance(plan: Plan, file: str) -> None:
    config = replace(plan.config, colocated=True, attn_gpus=1, ffn_gpus=1)
    instance = Instance(make_plan(config, plan.folder, read_machine()))
    instance.fork(A0)
    instance.run()
    instance.sent.clear()
    asked(instance, file)
    assert [node for node, _ in prepares(instance)] == [A0]
    assert entered(instance) == {A0: FIRST}
    assert instance.updates == [WeightsUpdated(1, "step-1", 0.0)]
