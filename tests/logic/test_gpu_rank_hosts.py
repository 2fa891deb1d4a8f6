"""Several hosts with GPUs, and nodes of several ranks: which GPUs of which host a node has, what is
refused, to where one is moved, and what it has on a host that comes back."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.hosts.remote import RemoteNodes
from megainfer.hosts.residences import Residences
from megainfer.launch.computing import settle_cuda, settle_nccl
from megainfer.launch.hosts.places import Elsewhere, Host
from megainfer.launch.hosts.spread import needs_of
from megainfer.launch.plan import Plan, make_plan
from megainfer.launch.plan_codec import decode_plan, encode_plan
from megainfer.launch.plan_text import describe
from megainfer.memory import GPU_NODE_BYTES
from megainfer.messages.message import Role
from tests.support.checkpoints import write_config
from tests.support.gpus import GIB, H200X8, h200
from tests.support.spread_plans import WITHOUT, FakeReception, host, moved, plan_of

ATTENTION, EXPERT = Role.ATTENTION, Role.EXPERT
OF_TWO: dict[str, Any] = {"attn_tp": 2, "ffn_tp": 2}
LEFT, RIGHT = host("left", 0, 1, 2, 3), host("right", 4, 5)
NODE = (EXPERT, 0)
"""Which is on RIGHT, and an attention node on the first two of LEFT, if there is one of each."""


def gpus_of(plan: Plan) -> list[list[tuple[str, list[int]]]]:
    """Of attention nodes and expert nodes, the host of each and its ranks' GPUs there."""
    return [
        [(*{gpu.host for gpu in gpus}, [gpu.number for gpu in gpus]) for gpus in nodes]
        for nodes in (plan.devices.attention, plan.devices.experts)
    ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_config("mixtral", "gqa", tmp_path, max_position_embeddings=4096)


@pytest.fixture
def plan(model: Path) -> Plan:
    return plan_of(model, LEFT, RIGHT, **OF_TWO)


@pytest.fixture
def residences(plan: Plan) -> Residences:
    assert plan.places is not None
    return Residences(plan.places, plan.devices)


def test_a_node_has_a_gpu_of_its_host_for_each_rank(model: Path) -> None:
    plan = plan_of(model, LEFT, RIGHT, WITHOUT, ffn_gpus=2, **OF_TWO)
    assert gpus_of(plan) == [[("left", [0, 1])], [("right", [0, 1]), ("left", [2, 3])]]
    assert plan.places is not None
    assert plan.places.elsewhere == ()
    assert decode_plan(encode_plan(plan)) == plan
    told = "\n".join(describe(plan))
    assert "attention 0  on left, 2 ranks, GPUs 0 | 1  cores " in told
    assert "expert 0     on right, 2 ranks, GPUs 0 | 1  cores " in told
    assert [*plan.gpu_ledgers()][:2] == ["attention 0.0", "attention 0.1"]


def test_cuda_shows_a_rank_its_own_gpu_first(plan: Plan) -> None:
    for rank, number in enumerate((4, 5)):
        environment: dict[str, str] = {}
        gpu = plan.devices.of(*NODE, rank)
        assert gpu is not None
        settle_cuda(environment, plan.devices, gpu)
        own, other = environment["CUDA_VISIBLE_DEVICES"].split(",")
        assert (own, other) == (h200(number).uuid, h200(9 - number).uuid)


def test_ranks_need_no_memory_of_their_host_but_their_processes(plan: Plan) -> None:
    taken = needs_of(plan, [NODE])
    assert 2 * GPU_NODE_BYTES < taken < 2 * GPU_NODE_BYTES + GIB


def test_ranks_on_gpus_stay_together_however_few_cores_there_are(model: Path) -> None:
    few = replace(LEFT, machine=replace(LEFT.machine, cores=(0,)))
    plan = plan_of(model, few, RIGHT, place={(ATTENTION, 0): "left"}, **OF_TWO)
    assert plan.places is not None
    assert plan.places.elsewhere == ()
    assert plan.cores_of_attention(0, 1).cores == (0,)


def test_nodes_of_many_ranks_are_placed_before_those_of_few(model: Path) -> None:
    """Else these would leave them one on each host."""
    plan = plan_of(model, host("left", 0, 1), host("right", 2, 3), attn_gpus=2, ffn_tp=2)
    assert gpus_of(plan) == [[("right", [0]), ("right", [1])], [("left", [0, 1])]]


def test_one_that_may_join_has_as_many_kept(model: Path) -> None:
    right = host("right", 4, 5, 6)
    plan = plan_of(model, LEFT, right, attn_tp=2, max_attn_gpus=2)
    assert gpus_of(plan) == [[("left", [0, 1]), ("left", [2, 3])], [("right", [0])]]
    assert plan.most_attention == 2
    assert [gpu.number for gpu in plan.devices.spare] == [1, 2]


def test_no_two_ranks_of_a_node_have_the_same_one(model: Path) -> None:
    plan = plan_of(model, host("left", 0, 1, gpus=(0, 0, 1)), ffn_tp=2)
    assert gpus_of(plan) == [[("left", [0])], [("left", [0, 1])]]


def test_ranks_on_cpus_may_part_beside_such_on_gpus(model: Path) -> None:
    place = {(ATTENTION, 0): "left", (ATTENTION, 0, 1): "cpus"}
    plan = plan_of(model, RIGHT, host("left", 0), WITHOUT, attn_device="cpu", place=place, **OF_TWO)
    assert gpus_of(plan) == [[], [("right", [0, 1])]]
    assert plan.places is not None
    assert plan.places.elsewhere == (Elsewhere(ATTENTION, 0, 1, "cpus"),)
    assert [plan.cores_of_attention(0, rank).threads for rank in range(2)] == [64, 64]


@pytest.mark.parametrize(
    ("hosts", "wish", "place", "text"),
    [
        (
            (host("left", 0, 1), host("right", 2)),
            OF_TWO,
            {},
            r"--attn-tp 2 and .* --ffn-tp 2 need 4 GPUs, but hosts offer 3 \(left 2, right 1\); "
            "use fewer nodes or ranks",
        ),
        (
            (host("left", 0, 1, 2), host("right", 3)),
            OF_TWO,
            {},
            "host right has 1 GPU left for the 2 ranks of expert node 0, which need one each; .*"
            "smaller --ffn-tp",
        ),
        (
            (host("left", 0, gpus=(0, 0)), host("right", 1)),
            {"attn_tp": 2},
            {(ATTENTION, 0): "left"},
            "host left has 1 GPU left for the 2 ranks of attention node 0, .*smaller --attn-tp",
        ),
        (
            (LEFT, RIGHT),
            OF_TWO,
            {(ATTENTION, 0): "left", (ATTENTION, 0, 1): "right"},
            r"--place attention\.0\.1=right: the ranks of a node on GPUs are on one host; use "
            r"--place attention\.0=right for all of them, or --attn-device cpu",
        ),
        (
            (LEFT, host("right", 4, 5, free_memory=GIB)),
            OF_TWO,
            {},
            r"GPU 0 of right \(NVIDIA H200\) has 1\.0 GiB free, but 1 node there need",
        ),
    ],
)
def test_what_hosts_do_not_have_for_ranks_is_refused(
    model: Path, hosts: tuple[Host, ...], wish: Any, place: Any, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_of(model, *hosts, place=place, **wish)


def test_ranks_meet_on_loopback_unless_nccl_leads_to_other_hosts(model: Path, plan: Plan) -> None:
    beside_cpus = plan_of(model, LEFT, RIGHT, ffn_device="cpu", **OF_TWO)
    one_host = make_plan(EngineConfig(**OF_TWO), model, H200X8)
    alone = make_plan(EngineConfig(), model, H200X8)
    loopback = {"NCCL_SOCKET_IFNAME": "lo"}
    for each, expected in ((plan, {}), (alone, {}), (beside_cpus, loopback), (one_host, loopback)):
        environment: dict[str, str] = {}
        settle_nccl(environment, each, ATTENTION)
        assert environment == expected
    own = {"NCCL_SOCKET_IFNAME": "eth1"}
    settle_nccl(own, one_host, ATTENTION)
    assert own == {"NCCL_SOCKET_IFNAME": "eth1"}


# --- hosts that stay away, or come back with other GPUs -------------------------------------------


def test_a_node_is_moved_to_as_many_gpus_of_one_host(
    plan: Plan, residences: Residences, caplog: pytest.LogCaptureFixture
) -> None:
    """Where each is another, nobody's, and has room; one on each of two hosts doesn't do."""
    full = replace(LEFT.machine.gpus[3], free_memory=GIB)
    one_full = replace(LEFT, machine=replace(LEFT.machine, gpus=(*LEFT.machine.gpus[:3], full)))
    twice = host("third", 6, gpus=(0, 0))
    with caplog.at_level(logging.WARNING):
        for hosts in ((host("left", 0, 1, 2), twice), (one_full, host("third", 6)), (one_full,)):
            assert moved(plan, residences, NODE, *hosts) == []
    assert "and the 2 GPUs with room that expert node 0 needs; it waits for right" in caplog.text
    assert moved(plan, residences, NODE, LEFT) == [(NODE, "left")]
    assert [gpu.number for gpu in residences.devices.of_ranks(*NODE)] == [2, 3]
    assert residences.of_ranks(*NODE, 2) == ("left", "left")
    assert moved(plan, residences, NODE, RIGHT) == [(NODE, "right")], "what it had is free again"
    assert [gpu.gpu for gpu in residences.devices.of_ranks(*NODE)] == [*RIGHT.machine.gpus]


@pytest.mark.parametrize(
    ("back", "numbers", "without"),
    [
        (RIGHT, [4, 5], ""),
        (host("right", 5, 4), [4, 5], ""),  # counted otherwise: each keeps its own
        (host("right", 6, 5), [6, 5], ""),
        (host("right", 5, 6), [6, 5], ""),
        (host("right", 6, 7), [6, 7], ""),
        (host("right", 4, gpus=(0, 0)), [4, None], "GPU 1"),
        (host("right", 6, gpus=(0, 0)), [6, None], "GPU 1"),
        (host("right", 6, 5, free_memory=GIB), [None, 5], "GPU 0"),
        (replace(WITHOUT, name="right"), [None, None], "GPUs 0,1"),
    ],
)
def test_on_a_host_that_comes_back_a_node_has_all_of_its_gpus_or_waits(
    *,
    plan: Plan,
    residences: Residences,
    caplog: pytest.LogCaptureFixture,
    back: Host,
    numbers: list[int | None],
    without: str,
) -> None:
    reception = FakeReception(LEFT, RIGHT)
    remote = RemoteNodes(plan, reception, residences)
    assert remote.can_start(*NODE)
    reception.there = [LEFT, back]
    with caplog.at_level(logging.WARNING):
        assert remote.can_start(*NODE) == (not without)
    found = residences.devices.of_ranks(*NODE)
    assert [gpu.gpu.uuid if gpu.there else None for gpu in found] == [
        None if number is None else h200(number).uuid for number in numbers
    ]
    if without:
        assert f"came back without {without} with room for expert node 0" in caplog.text
    assert residences.devices.attention == plan.devices.attention
    reception.there = [LEFT, RIGHT]
    assert remote.can_start(*NODE)
    assert [gpu.gpu for gpu in residences.devices.of_ranks(*NODE)] == [*RIGHT.machine.gpus]
