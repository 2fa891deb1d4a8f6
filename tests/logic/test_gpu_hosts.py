"""Several hosts with GPUs: which node has which, what is refused, and to where one is moved."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megainfer.errors import ConfigError, NodeDied
from megainfer.hosts.doctor import tell_gpus
from megainfer.hosts.remote import RemoteNodes
from megainfer.hosts.residences import Residences
from megainfer.launch.computing import settle_cuda
from megainfer.launch.devices import ON_CPU, NumberedGpu
from megainfer.launch.hosts.places import Host, check_gpus
from megainfer.launch.hosts.spread import needs_of
from megainfer.launch.nvml import Gpu
from megainfer.launch.plan import Plan
from megainfer.launch.plan_codec import decode_plan, encode_plan
from megainfer.launch.plan_text import describe
from megainfer.memory import GPU_NODE_BYTES
from megainfer.messages.message import Role
from tests.support.checkpoints import write_config
from tests.support.gpus import GIB, h200, machine_of
from tests.support.spread_plans import WITHOUT, FakeReception, host, moved, plan_of

ATTENTION, EXPERT = Role.ATTENTION, Role.EXPERT
APART = {(ATTENTION, 0): "left", (EXPERT, 0): "right"}


def gpus_of(plan: Plan) -> dict[str, list[tuple[str, int]]]:
    """By role, host and number of each node's GPU."""
    both = {"attention": plan.devices.attention, "experts": plan.devices.experts}
    return {role: [(gpu.host, gpu.number) for (gpu,) in gpus] for role, gpus in both.items()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_config("mixtral", "gqa", tmp_path, max_position_embeddings=4096)


def test_nodes_go_where_most_gpus_are_free(model: Path) -> None:
    plan = plan_of(model, host("left", 0, 1, 2), host("right", 3), WITHOUT, ffn_gpus=3)
    assert gpus_of(plan) == {
        "attention": [("left", 0)],
        "experts": [("left", 1), ("right", 0), ("left", 2)],
    }
    assert plan.places is not None
    assert plan.places.experts == ("left", "right", "left")
    assert plan.devices.spare == ()
    assert (plan.road.kind, plan.road.groups, plan.road.near) == ("mixed", "nccl", "ipc")
    assert plan.payloads == "device"
    assert decode_plan(encode_plan(plan)) == plan


def test_a_host_offers_what_its_agent_says_in_that_order(model: Path) -> None:
    """One that is named twice has two nodes, and what is left is kept for nobody."""
    left, right = host("left", 0, 1, 2, gpus=(2, 2, 0)), host("right", 3)
    plan = plan_of(model, left, right, ffn_gpus=2, place={(EXPERT, 1): "right"})
    assert gpus_of(plan) == {"attention": [("left", 2)], "experts": [("left", 2), ("right", 0)]}
    assert [str(gpu) for gpu in plan.devices.spare] == ["GPU 0 of left (NVIDIA H200)"]
    told = "\n".join(describe(plan))
    assert "attention 0  on left, GPU 2" in told
    assert "expert 1     on right, GPU 0" in told
    assert "GPU 0 of right" in told


def test_one_that_may_join_has_a_gpu_kept(model: Path) -> None:
    hosts = host("left", 0, 1), host("right", 2, 3, 4)
    plan = plan_of(model, *hosts, ffn_gpus=2, max_ffn_gpus=3, max_attn_gpus=2)
    assert gpus_of(plan) == {
        "attention": [("right", 0), ("left", 1)],
        "experts": [("left", 0), ("right", 1), ("right", 2)],
    }
    assert (plan.most_attention, plan.most_expert) == (2, 3)
    assert plan.places is not None
    assert Residences(plan.places, plan.devices).of(ATTENTION, 1) == "left"


@pytest.mark.parametrize(
    ("hosts", "wish", "place", "text"),
    [
        (
            (host("left", 0), host("right", 1), WITHOUT),
            {"ffn_gpus": 2},
            {},
            r"need 3 GPUs, but hosts offer 2 \(left 1, right 1, cpus 0\); .*--gpus 0,0 of an agent",
        ),
        (
            (host("left", 0), host("right", 1)),
            {},
            {(ATTENTION, 0): "left", (EXPERT, 0): "left"},
            "host left has no GPU left for expert node 0; place fewer there",
        ),
        (
            (host("left", 0), host("old", 1, capability=(7, 5))),
            {},
            {},
            r"GPU 0 of old \(NVIDIA H200\) is of sm_75",
        ),
        ((host("left", 0, 1, split=True),), {}, {}, r"GPU 0 of left .* is split into instances"),
        ((WITHOUT,), {"device": "cuda"}, {}, "no GPU can be used: cpus: no libnvidia-ml"),
        (
            (host("left", 0, 1, free_memory=GIB),),
            {},
            {},
            r"GPU 0 of left \(NVIDIA H200\) has 1\.0 GiB free, but 1 node there need",
        ),
    ],
)
def test_what_hosts_do_not_have_is_refused_by_their_names(
    model: Path, hosts: tuple[Host, ...], wish: Any, place: Any, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_of(model, *hosts, place=place, **wish)


def test_without_gpus_that_can_be_used_all_is_on_cpus(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And which host has some that can't be is said."""
    broken = host("broken", 0)
    broken = replace(broken, machine=replace(broken.machine, gpu_problem="no driver"))
    with caplog.at_level(logging.WARNING):
        plan = plan_of(model, broken, WITHOUT)
    assert plan.devices == ON_CPU
    assert (plan.road.groups, plan.road.near) == ("gloo", "shm")
    assert "the GPUs of host broken can't be used: no driver" in caplog.messages


def test_one_role_on_gpus_leaves_the_other_the_hosts_memory(model: Path) -> None:
    """Between a GPU and a CPU payloads are the hosts', by gloo; caches are the GPUs'."""
    hosts = host("left", 0), host("right", 1), WITHOUT
    wish: dict[str, Any] = {"attn_gpus": 2, "ffn_gpus": 2, "ffn_device": "cpu"}
    plan = plan_of(model, *hosts, place={(EXPERT, 0): "left", (EXPERT, 1): "cpus"}, **wish)
    assert gpus_of(plan) == {"attention": [("right", 0), ("left", 0)], "experts": []}
    assert (plan.road.groups, plan.road.near, plan.payloads) == ("gloo", "shm", "host")
    assert plan.num_blocks > 0
    assert plan.cores_of_attention(0).threads == 1
    assert plan.cores_of_expert(0).threads == 63
    assert plan.cores_of_expert(1).threads == 64
    on_gpu, on_cpu = needs_of(plan, [(ATTENTION, 0)]), needs_of(plan, [(EXPERT, 0)])
    assert GPU_NODE_BYTES < on_gpu < GPU_NODE_BYTES + plan.config.grammar_memory + GIB
    assert on_cpu > plan.expert_ledger(0).total


def test_caches_fit_the_gpu_with_the_least_room(model: Path) -> None:
    wish: dict[str, Any] = {"attn_gpus": 2, "max_num_seqs": 4096, "max_model_len": 4096}
    place = {(ATTENTION, 0): "left", (ATTENTION, 1): "right"}
    large, small = host("right", 2, 3), host("right", 2, 3, free_memory=8 * GIB)
    blocks = [
        plan_of(model, host("left", 0, 1), right, place=place, **wish).num_blocks
        for right in (large, small)
    ]
    assert 0 < blocks[1] < blocks[0]


def test_groups_and_slots_both_take_memory_of_a_gpu(model: Path) -> None:
    hosts = host("left", 0), host("right", 1)
    mixed, groups = (plan_of(model, *hosts, m2n=m2n).attention_ledger() for m2n in ("auto", "dist"))
    assert mixed.of("M2N") > groups.of("M2N") > 0


def test_cuda_sees_its_own_host_only(model: Path) -> None:
    plan = plan_of(model, host("left", 0, 1, 2), host("right", 3), ffn_gpus=2)
    environment: dict[str, str] = {}
    (gpu,) = plan.devices.experts[0]
    settle_cuda(environment, plan.devices, gpu)
    own, *others = environment["CUDA_VISIBLE_DEVICES"].split(",")
    assert own == gpu.gpu.uuid
    assert {own, *others} == {h200(number).uuid for number in range(3)}


@pytest.mark.parametrize("gpus", [(0, 2), (-1,), (0,) * 300])
def test_what_an_agent_can_not_offer_is_refused(gpus: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--gpus names GPU .*, but there are 2|more than 256"):
        check_gpus(host("left", 0, 1, gpus=gpus))


def test_the_doctor_names_gpus_and_drivers_that_differ() -> None:
    left, right = host("left", 0, 1, gpus=(0, 0, 1)), host("right", 2)
    left = replace(left, machine=replace(left.machine, driver="570.1"))
    other = replace(right, machine=replace(right.machine, driver="580.2"))
    broken = replace(right, name="broken", machine=replace(right.machine, gpu_problem="no torch"))
    assert list(tell_gpus([left, other, broken, WITHOUT])) == [
        "left: 2 NVIDIA H200; driver 570.1",
        "right: 1 NVIDIA H200; driver 580.2",
        "broken: GPUs that can't be used: no torch",
        "drivers of GPUs differ between left, right: have the same on all",
    ]
    same = replace(right, machine=replace(right.machine, driver="570.1"))
    assert "differ" not in "".join(tell_gpus([left, same]))


# --- hosts that stay away -------------------------------------------------------------------------


def test_a_node_is_moved_to_a_gpu_that_nobody_has(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had is free again, should its host come back."""
    left, right = host("left", 0, 1, 2), host("right", 3)
    place = {(ATTENTION, 0): "left", (EXPERT, 0): "left", (EXPERT, 1): "right"}
    plan = plan_of(model, left, right, ffn_gpus=2, place=place)
    assert plan.places is not None
    residences, node = Residences(plan.places, plan.devices), (EXPERT, 1)
    other = replace(left, machine=replace(left.machine, available_memory=100 * GIB))
    assert moved(plan, residences, node, other) == [(node, "left")]
    found = residences.devices.of(*node)
    assert found is not None
    assert (found.host, found.number, found.gpu.uuid) == ("left", 2, h200(2).uuid)
    with caplog.at_level(logging.WARNING):
        assert moved(plan, residences, (EXPERT, 0), other) == []
    assert "and the GPU with room that expert node 0 needs; it waits for left" in caplog.text
    assert moved(plan, residences, (EXPERT, 0), right) == [((EXPERT, 0), "right")]


@pytest.mark.parametrize("of_gpu", [{"free_memory": GIB}, {"capability": (7, 0)}, {"split": True}])
def test_a_gpu_that_does_not_do_takes_no_node(model: Path, of_gpu: dict[str, Any]) -> None:
    hosts = host("left", 0), host("right", 1)
    plan = plan_of(model, *hosts)
    assert plan.places is not None
    residences = Residences(plan.places, plan.devices)
    node = (EXPERT, 0)
    assert moved(plan, residences, node, host("third", 2, **of_gpu)) == []
    third = host("third", 2, 3)
    assert moved(plan, residences, node, third) == [(node, "third")]
    found = residences.devices.of(*node)
    assert found is not None
    assert [gpu.number for gpu in residences.devices.beside(found)] == [1], "to where others go"


def test_one_that_is_offered_twice_has_room_for_both_or_takes_one(model: Path) -> None:
    """What the node that is there takes isn't free, though nothing was taken yet when it joined."""
    plan = plan_of(model, host("left", 0, gpus=(0, 0)), host("right", 1), place=APART)
    assert plan.places is not None
    each = plan.attention_ledger().total + plan.expert_ledger(0).total
    for free, goes in ((each, [((EXPERT, 0), "left")]), (each - 1, [])):
        left = host("left", 0, gpus=(0, 0), free_memory=free)
        residences = Residences(plan.places, plan.devices)
        assert moved(plan, residences, (EXPERT, 0), left) == goes


# --- hosts that come back with other GPUs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("back", "experts"),
    [
        (host("right", 2, 3), [2, 3]),
        (host("right", 3, 2), [2, 3]),  # counted otherwise: each keeps its own
        (host("right", 4, 3), [4, 3]),
        (host("right", 4, 5), [4, 5]),  # by numbers
        (host("right", 3, 4), [4, 3]),
        (host("right", 2, 3, gpus=(1, 0)), [2, 3]),
        (host("right", 2, gpus=(0,)), [2, None]),
        (host("right", 4, 3, gpus=(1,)), [None, 3]),
        (host("right", 4, 5, free_memory=GIB), [None, None]),
        (host("right", 4, 5, split=True), [None, None]),
        (host("right", 2, 3, split=True), [None, None]),  # since then
        (WITHOUT, [None, None]),
    ],
)
def test_a_host_that_comes_back_has_nodes_on_the_gpus_that_it_offers_then(
    model: Path, back: Host, experts: list[int | None]
) -> None:
    """And what CUDA is told there is what there is: behind what isn't it would see nothing."""
    back, left = replace(back, name="right"), host("left", 0, 1)
    wish = {(ATTENTION, 0): "left", (EXPERT, 0): "right", (EXPERT, 1): "right"}
    plan = plan_of(model, left, host("right", 2, 3), ffn_gpus=2, place=wish)
    assert plan.places is not None
    residences = Residences(plan.places, plan.devices)
    reception = FakeReception(left, host("right", 2, 3))
    remote = RemoteNodes(plan, reception, residences)
    assert remote.can_start(EXPERT, 0)
    assert residences.devices == plan.devices
    reception.there = [left, back]
    assert remote.can_start(ATTENTION, 0)
    uuids = {gpu.uuid for gpu in back.machine.gpus}
    for node, number in enumerate(experts):
        gpu = residences.devices.of(EXPERT, node)
        assert gpu is not None
        assert remote.can_start(EXPERT, node) == gpu.there == (number is not None)
        assert number is None or gpu.gpu.uuid == h200(number).uuid
        beside = residences.devices.beside(gpu)
        assert {other.gpu.uuid for other in beside} <= uuids
        assert not any(other.gpu.split for other in beside)
    assert residences.devices.attention == plan.devices.attention
    reception.there = [left, host("right", 2, 3)]
    assert all(remote.can_start(EXPERT, node) for node in range(2))


def test_a_node_without_its_gpu_waits_for_a_bounded_time_or_moves(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(model, host("left", 0, 1), host("right", 2), place=APART)
    assert plan.places is not None
    residences = Residences(plan.places, plan.devices)
    reception = FakeReception(host("left", 0, 1), replace(WITHOUT, name="right"))
    remote = RemoteNodes(plan, reception, residences)
    node, needed = (EXPERT, 0), [(ATTENTION, 0), (EXPERT, 0)]
    for _ in range(2):
        assert not remote.can_start(*node)
        assert list(remote.move([node], needed)) == []
        remote.check_host(*node)
    (said,) = caplog.messages
    assert said == (
        "host right came back without GPU 0 with room for expert node 0, which waits until an "
        "agent there offers that GPU"
    )
    reception.patience = -1.0
    with pytest.raises(NodeDied, match=r"host right came back without a GPU of expert node 0"):
        remote.check_host(*node)
    reception.move_after = -1.0
    assert list(remote.move([node], needed)) == [(node, "left")]
    assert remote.can_start(*node)
    remote.check_host(*node)


def test_spare_gpus_are_told_once_behind_those_of_nodes(model: Path) -> None:
    """However often a node moves."""
    left = host("left", 0, 1, 2, 3)
    left = replace(left, machine=machine_of(*map(h200, (0, 1, 2)), replace(h200(3), split=True)))
    plan = plan_of(model, left, host("right", 4), place=APART)
    assert plan.places is not None
    residences = Residences(plan.places, plan.devices)
    for _ in range(3):
        moved(plan, residences, (EXPERT, 0), left)
    spare = [gpu.place for gpu in residences.devices.spare]
    assert len(spare) == len({*spare})
    assert not {*spare} & {gpu.place for gpu in residences.devices.gpus}
    (own,) = residences.devices.attention[0]
    (other,) = residences.devices.experts[0]
    beside = residences.devices.beside(own)
    assert beside[0].place == other.place
    assert {gpu.number for gpu in beside} == {1, 2}


def test_which_gpu_it_is_does_not_depend_on_what_is_free() -> None:
    one = NumberedGpu(0, h200(0), "left")
    later = NumberedGpu(0, replace(h200(0), free_memory=GIB), "left")
    assert one.place == later.place
    assert isinstance(one.gpu, Gpu)
