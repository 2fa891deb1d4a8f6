"""Which node is on which host, and what a plan of several hosts makes of it."""

from pathlib import Path
from typing import Any

import pytest

from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.hosts.places import (
    ONE_RANK,
    Elsewhere,
    Host,
    Part,
    parse_place,
    place_nodes,
)
from megainfer.launch.hosts.spread import (
    Site,
    _beside_caches,
    make_spread_plan,
    need_of_parts,
    needs_of,
    whole,
)
from megainfer.launch.machine import Machine
from megainfer.launch.plan import SHARED_BY_RANKS, Plan
from megainfer.launch.plan_codec import decode_plan, encode_plan
from megainfer.launch.plan_text import describe
from megainfer.memory import expert_bytes
from megainfer.messages.message import Role
from tests.support.checkpoints import write_config

GIB = 2**30
ATTENTION, EXPERT = Role.ATTENTION, Role.EXPERT
ATTENTION_0 = (ATTENTION, 0)


def host(name: str, cores: int = 4, memory: int = 8 * GIB) -> Host:
    machine = Machine(tuple(range(cores)), memory, memory, False)
    return Host(name, "10.0.0.2", machine)


def test_nodes_go_where_a_node_would_have_most() -> None:
    places = place_nodes(1, 3, [host("small", 2), host("large", 8)], {})
    assert places.attention == ("large",)
    assert places.experts == ("large", "large", "small")
    even = place_nodes(1, 1, [host("left"), host("right", memory=9 * GIB)], {})
    assert (even.attention, even.experts) == (("right",), ("left",))
    assert even.on("left", ONE_RANK) == [Part(EXPERT, 0, (0,))]


def test_wishes_come_first_and_others_make_way() -> None:
    hosts = [host("left"), host("right")]
    places = place_nodes(1, 2, hosts, {(EXPERT, 0): "left", (EXPERT, 1): "left"})
    assert (places.attention, places.experts) == (("right",), ("left", "left"))
    assert places.of(ATTENTION, 0) == "right"
    assert {places.of(EXPERT, node) for node in (2, 3)} == {"left", "right"}  # that join later


@pytest.mark.parametrize(
    "text", ["attention=left", "attention.x=left", "server.0=left", "expert.0=", "expert.0"]
)
def test_a_place_that_is_none_is_refused_by_its_words(text: str) -> None:
    with pytest.raises(ConfigError, match="--place must be such as"):
        parse_place(text)


def test_wishes_for_what_is_not_there_are_refused() -> None:
    hosts = [host("left"), host("right")]
    with pytest.raises(ConfigError, match="no such node"):
        place_nodes(1, 1, hosts, {(EXPERT, 1): "left"})
    with pytest.raises(ConfigError, match="no such host; there are: left, right"):
        place_nodes(1, 1, hosts, {(EXPERT, 0): "middle"})


def plan_of(folder: Path, site: Site, **wish: Any) -> Plan:
    config = EngineConfig(**wish)
    return make_spread_plan(config, write_config("mixtral", "gqa", folder), site)


def test_a_plan_of_hosts_gives_each_node_cores_of_its_host(tmp_path: Path) -> None:
    site = Site((host("left"), host("right", 2)), {(EXPERT, 0): "right", (EXPERT, 1): "left"})
    plan = plan_of(tmp_path, site, ffn_gpus=2)
    assert plan.cores_of_attention(0).cores == (0, 1)
    assert plan.cores_of_expert(1).cores == (2, 3)
    assert plan.cores_of_expert(0).cores == (0, 1)
    assert plan.measures, "stages can overlap: no two nodes of a host share a core"
    assert plan.spin_seconds == 0.0
    assert plan.road.kind == "mixed"
    assert decode_plan(encode_plan(plan)) == plan
    assert "attention 0  on left, cores 0,1" in "\n".join(describe(plan))


def test_ranks_share_what_their_node_has_on_its_host(tmp_path: Path) -> None:
    wish = {(ATTENTION, 0): "left", (EXPERT, 0): "left", (EXPERT, 1): "right"}
    site = Site((host("left", 6), host("right", 2), host("idle")), wish)
    plan = plan_of(tmp_path, site, ffn_gpus=2, attn_tp=2, ffn_tp=2)
    assert [plan.cores_of_attention(0, rank).cores for rank in range(2)] == [(0, 1), (2, 3)]
    assert [plan.cores_of_expert(0, rank).cores for rank in range(2)] == [(4,), (5,)]
    assert [plan.cores_of_expert(1, rank).cores for rank in range(2)] == [(0,), (1,)]
    assert plan.measures, "no two processes of a host share a core"
    few = Site((host("left", 4), host("right", 2)), wish)
    assert not plan_of(tmp_path, few, ffn_gpus=2, attn_tp=2, ffn_tp=4).measures
    assert decode_plan(encode_plan(plan)) == plan


def test_ranks_are_where_they_are_wished() -> None:
    hosts, ranks = [host("left"), host("right")], {ATTENTION: 2, EXPERT: 3}
    wishes = {(ATTENTION, 0): "left", (ATTENTION, 0, 1): "right", (EXPERT, 0, 0): "right"}
    places = place_nodes(1, 1, hosts, {**wishes, (EXPERT, 0, 2): "left"}, ranks)
    assert (places.attention, places.experts) == (("left",), ("right",))
    assert places.of_ranks(ATTENTION, 0, 2) == ("left", "right")
    assert places.of_ranks(EXPERT, 0, 3) == ("right", "right", "left")
    assert places.on("left", ranks) == [Part(ATTENTION, 0, (0,)), Part(EXPERT, 0, (2,))]
    assert places.name_of(EXPERT, 0) == "right+left"
    with pytest.raises(
        ConfigError, match=r"attention\.0\.2=left: there is no such rank; --attn-tp"
    ):
        place_nodes(1, 1, hosts, {(ATTENTION, 0, 2): "left"}, ranks)
    both = {(EXPERT, 0): "left", (EXPERT, 0, 0): "right"}
    with pytest.raises(ConfigError, match="its node is to be on left; say one of both"):
        place_nodes(1, 1, hosts, both, ranks)


def test_ranks_go_elsewhere_by_themselves_only_where_cores_lack() -> None:
    ranks = {ATTENTION: 2, EXPERT: 4}
    roomy = place_nodes(1, 1, [host("left"), host("right")], {}, ranks)
    assert roomy.elsewhere == ()
    wish = {(EXPERT, 0): "small", (ATTENTION, 0): "small"}
    places = place_nodes(1, 1, [host("small", 2), host("large", 8)], wish, ranks)
    assert places.elsewhere == tuple(Elsewhere(EXPERT, 0, rank, "large") for rank in (2, 3))
    nowhere = place_nodes(1, 1, [host("small", 2), host("other", 1)], wish, ranks)
    assert nowhere.elsewhere == (Elsewhere(EXPERT, 0, 2, "other"),)


def test_what_ranks_take_counts_on_the_host_of_each(tmp_path: Path) -> None:
    wish = {(ATTENTION, 0): "left", (ATTENTION, 0, 1): "right", (EXPERT, 0): "left"}
    site = Site((host("left", 6), host("right", 2)), {**wish, (EXPERT, 0, 1): "right"})
    plan = plan_of(tmp_path, site, attn_tp=2, ffn_tp=2)
    assert decode_plan(encode_plan(plan)) == plan
    assert [plan.cores_of_attention(0, rank).cores for rank in range(2)] == [(0, 1, 2), (0,)]
    assert [plan.cores_of_expert(0, rank).cores for rank in range(2)] == [(3, 4, 5), (1,)]
    assert plan.measures, "no two processes of a host share a core"
    text = "\n".join(describe(plan))
    assert "attention 0  on left | right, 2 ranks, cores 0,1,2 | 0" in text
    for role in (ATTENTION, EXPERT):
        both = _beside_caches(plan, [whole(plan, role, 0)])
        parts = [_beside_caches(plan, [Part(role, 0, (rank,))]) for rank in range(2)]
        weights = [part.of("weights") for part in parts]
        assert sum(weights) - both.of("weights") in (0, 1)
        assert [part.of("M2N") for part in parts] == [both.of("M2N"), 0]
        assert [part.of(SHARED_BY_RANKS) for part in parts] == [both.of(SHARED_BY_RANKS)] * 2
    first, second = (need_of_parts(plan, [Part(ATTENTION, 0, (rank,))]) for rank in range(2))
    assert 0 < second < first


def test_a_host_that_has_a_rank_bounds_the_caches(tmp_path: Path) -> None:
    wish = {(ATTENTION, 0): "left", (ATTENTION, 0, 1): "right", (EXPERT, 0): "left"}
    small, large = (
        plan_of(tmp_path, Site((host("left"), host("right", memory=size)), wish), attn_tp=2)
        for size in (2**29, 8 * GIB)
    )
    assert 0 < small.num_blocks < large.num_blocks


def test_what_ranks_share_counts_on_their_host(tmp_path: Path) -> None:
    site = Site((host("left"), host("right")), {(ATTENTION, 0): "left", (EXPERT, 0): "right"})
    plan = plan_of(tmp_path, site, attn_tp=2, ffn_tp=2)
    shared = [
        _beside_caches(plan, [whole(plan, *node)]).of(SHARED_BY_RANKS)
        for node in (ATTENTION_0, (EXPERT, 0))
    ]
    assert shared == [plan.half_layout.total_bytes, plan.shared_by_ranks(EXPERT).total]
    assert min(shared) > 0


def test_caches_fit_the_host_with_least_room(tmp_path: Path) -> None:
    wish = {(ATTENTION, 0): "left", (ATTENTION, 1): "right", (EXPERT, 0): "right"}
    small, large = host("left", memory=GIB), host("left", memory=64 * GIB)
    blocks = [
        plan_of(
            tmp_path, Site((left, host("right", memory=64 * GIB)), wish), attn_gpus=2
        ).num_blocks
        for left in (small, large)
    ]
    assert 0 < blocks[0] < blocks[1]
    with pytest.raises(ConfigError, match=r"host left has 64\.0 KiB of memory"):
        plan_of(tmp_path, Site((host("left", memory=2**16), host("right")), {ATTENTION_0: "left"}))


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        ({"colocated": True}, "--colocated is one process"),
        ({"m2n": "shm"}, "--m2n shm is memory of one host"),
        ({"m2n_host": "10.0.0.9"}, "each agent's --host"),
        ({"pin_weights": True}, "--pin-weights holds files"),
        ({"attn_tp": 3}, "--attn-tp 3: layer 0's attention can't be shared by so many ranks"),
        ({"gpus": (0, 1)}, "each agent's --gpus says which there are"),
        ({"device": "cuda"}, "no GPU can be used: left: there is none"),
    ],
)
def test_what_hosts_do_not_have_is_refused(tmp_path: Path, wish: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_of(tmp_path, Site((host("left"),), {}), **wish)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_experts_that_nodes_hand_over_take_memory_of_their_hosts(
    tmp_path: Path, dtype: str
) -> None:
    """Two that a node gives at a time, and one that it is given; ranks hand over none."""
    wish: dict[str, Any] = {"expert_dtype": dtype, "ffn_gpus": 2}
    place = {(ATTENTION, 0): "left", (EXPERT, 0): "right", (EXPERT, 1): "right"}
    hosts = host("left"), host("right")
    without = plan_of(tmp_path, Site(hosts, place), **wish)
    plan = plan_of(tmp_path, Site(hosts, place, hands_over=True), **wish)
    each = expert_bytes(plan.spec, plan.precision, on_gpu=False)
    for nodes in ([(EXPERT, 0)], [(EXPERT, 0), (EXPERT, 1)]):
        more = needs_of(plan, nodes) - needs_of(without, nodes)
        assert more == 3 * each * len(nodes)
    assert needs_of(plan, [(ATTENTION, 0)]) == needs_of(without, [(ATTENTION, 0)])
    assert decode_plan(encode_plan(plan)) == plan
    ranks = plan_of(tmp_path, Site(hosts, place, hands_over=True), **wish, ffn_tp=2)
    assert ranks.places is not None
    assert not ranks.places.hands_over
