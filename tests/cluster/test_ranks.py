"""Expert nodes of several ranks: the same tokens, and the same bits whoever is done first."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations
from threading import Thread
from time import monotonic

import pytest
import torch

from megainfer.checkpoint.reader import WeightReader
from megainfer.config import EngineConfig
from megainfer.device import HOST
from megainfer.errors import ConfigError, NodeDied
from megainfer.expert_node.moving import Mover
from megainfer.expert_node.other_ranks import ExpertRanks
from megainfer.expert_node.profile import dispatches_of
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.launch.plan_text import describe
from megainfer.launch.ranks.seats import RankSeats
from megainfer.memory import kv_block_bytes
from megainfer.messages.from_child import Prepared
from megainfer.messages.to_child import Prepare
from megainfer.ranks.layout import RowsLayout
from megainfer.ranks.memory import FollowingMemory, LeadingMemory
from megainfer.ranks.road import MESSAGE
from megainfer.ranks.rows import FollowingRows, LeadingRows, Order
from megainfer.ranks.shared import Shared
from megainfer.topology import contiguous_placement
from tests.support.checkpoints import assert_same_greedy, write_config
from tests.support.local_cluster import NEW_TOKENS, LocalCluster, greedy_submit
from tests.support.ranks import RankedCluster, half_outputs

# Latent attention and a shared expert; recurrent layers and a gated shared expert; windows, sinks,
# biases and interleaved gates; shared experts without either.
FAMILIES = (
    ("deepseek_v3", "groups"),
    ("qwen3_next", "grouped"),
    ("gpt_oss", "alternating"),
    ("qwen2_moe", "gqa"),
)
every_family = pytest.mark.parametrize(
    "reference", FAMILIES, indirect=True, ids=[family for family, _ in FAMILIES], scope="module"
)
one_family = pytest.mark.parametrize(
    "reference", [("qwen3_moe", "gqa")], indirect=True, ids=["qwen3"], scope="module"
)

SECONDS = 60.0
NewCluster = Callable[..., RankedCluster]


@pytest.fixture
def new_cluster() -> Iterator[NewCluster]:
    made: list[RankedCluster] = []

    def make(*args, **options) -> RankedCluster:
        made.append(RankedCluster(*args, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@every_family
def test_tokens_equal_transformers(reference, new_cluster):
    """Two attention and two expert nodes of two ranks each, with preemption and prefix hits."""
    folder, prompts, expected = reference
    plan = make_plan(EngineConfig(str(folder)), folder, read_machine())
    room = 5 * kv_block_bytes(plan.spec, plan.precision, ranks=2)
    cluster = new_cluster(
        folder,
        2,
        2,
        2,
        attn_tp=2,
        ffn_tp=2,
        max_num_batched_tokens=24,
        max_model_len=80,
        kv_cache_memory=room,
    )
    for node in (0, 1):
        for i, prompt in enumerate(prompts):
            cluster.submit(node, greedy_submit(f"{node}-{i}", prompt, NEW_TOKENS))
        for i in range(3):  # that grow until there is no room for all
            cluster.submit(node, greedy_submit(f"{node}-long-{i}", prompts[i], 60))
    cluster.drain()
    for node in (0, 1):
        own = [cluster.answers[f"{node}-{i}"] for i in range(len(prompts))]
        assert_same_greedy(expected, [answer.tokens for answer in own])
        assert cluster.attention[node].scheduler.counters()["preemptions"] > 0
    for name in ("once", "again"):  # its prefix is there, unless blocks don't hold all of a prefix
        cluster.submit(0, greedy_submit(name, prompts[-1], NEW_TOKENS))
        cluster.drain()
    again = cluster.answers["again"]
    assert_same_greedy(expected[-1:], [again.tokens])
    assert again.cached_tokens == (0 if plan.spec.is_recurrent else 48)


@every_family
def test_halves_are_those_of_one_rank(reference, new_cluster):
    """All that an attention node computes of a step, experts apart."""
    folder, prompts, _ = reference
    alone, ranked = (
        half_outputs(new_cluster(folder, 1, 1, 1, attn_tp=ranks), prompts) for ranks in (1, 2)
    )
    for whole, summed in zip(alone, ranked, strict=True):
        assert (whole - summed).abs().max() <= 1e-5 * whole.abs().max()
    assert torch.equal(alone[0], ranked[0]), "of a token's embedding all others have zeros"
    assert not torch.equal(alone[-1], ranked[-1]), "sums are made in another order"


@one_family
@pytest.mark.parametrize("expert_dtype", ["bfloat16", "int8"])
def test_narrow_weights_are_those_of_one_rank(reference, new_cluster, expert_dtype):
    """Each product is of the same weights, so results differ by the order of additions only; int8
    has scales of 128 channels, of which these experts have fewer, so its own differ a little."""
    folder, _, _ = reference
    options = {"expert_dtype": expert_dtype, "max_num_batched_tokens": 64}
    alone, ranked = (
        outputs_of(new_cluster(folder, 1, 1, 1, ffn_tp=ranks, **options)) for ranks in (1, 2)
    )
    bound = {"bfloat16": 1e-5, "int8": 0.02}[expert_dtype]
    assert (alone - ranked).abs().max() <= bound * alone.abs().max()


@one_family
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_outputs_are_those_of_one_rank(reference, new_cluster, kernels):
    folder, _, _ = reference
    alone, *ranked = (
        outputs_of(new_cluster(folder, 1, 1, 1, ffn_tp=ranks, kernels=kernels))
        for ranks in (1, 2, 3)
    )
    for own in ranked:
        assert (alone - own).abs().max() <= 1e-6 * alone.abs().max()
        assert not torch.equal(alone, own), "sums are made in another order"


@one_family
def test_experts_move_on_all_ranks_together(reference, new_cluster):
    folder, _, _ = reference
    cluster = new_cluster(folder, 1, 1, 2, ffn_tp=2)
    spec = cluster.plan.spec
    placement = contiguous_placement(spec.num_experts, 2, spec.moe_layers, replicas=2)
    wish = Prepare(ticket=5, placement=placement)
    for node, ranks in enumerate(cluster.parts):
        reader = partial(WeightReader, folder)
        mover = Mover(cluster.experts[node]._model, reader)
        older = Prepare(ticket=4, placement=placement)
        ranks.links.prepare(older)  # which another takes the place of at once
        ranks.links.prepare(wish)
        mover.prepare(wish)
        said: list[Prepared] = []
        deadline = monotonic() + SECONDS
        while not said:
            said += ranks.links.agreed(mover.news())
            assert monotonic() < deadline, "some rank has not read its experts"
        assert said == [Prepared(5)]
        assert not [*ranks.links.agreed([])], "it is said once"
    before = cluster.membership
    cluster.enter(replace(before, epoch=before.epoch + 1, placement=placement))
    fresh = new_cluster(folder, 1, 1, 2, ffn_tp=2, placement=placement)
    for node in (0, 1):
        assert torch.equal(outputs_of(cluster, node, fresh.plan), outputs_of(fresh, node))


def test_one_rank_that_cannot_is_what_the_node_says():
    """Neither before all have spoken, nor without who it is."""
    layout = RowsLayout(ranks=3, rows=1, hidden_size=8, top_k=1, dtype="float32")
    seats = RankSeats(layout)
    others = ExpertRanks(seats.leading, 0, 0.0)
    followers = [seats.following(rank).road(0.0) for rank in (1, 2)]
    for follower in followers:
        follower.done()
    others.links.prepare(Prepare(ticket=1, placement=contiguous_placement(4, 1, (0,), 0)))
    assert not [*others.links.agreed([Prepared(1)])]
    seats.following(1).link.send(Prepared(0, "of another wish"))
    seats.following(1).link.send(Prepared(1))
    assert not [*others.links.agreed([])]
    seats.following(2).link.send(Prepared(1, "the disk is gone"))
    assert [*others.links.agreed([])] == [Prepared(1, "rank 2: the disk is gone")]


def outputs_of(cluster: LocalCluster, node: int = 0, plan: Plan | None = None) -> torch.Tensor:
    """What its expert node makes of rows that chose experts at random. plan: by whose placement,
    its own unless given."""
    dispatches = dispatches_of(plan or cluster.plan, node, 20, HOST)
    outs = [torch.empty_like(dispatch.hidden) for dispatch in dispatches]
    model = cluster.experts[node]._model
    model.forward(cluster.plan.spec.first_moe_layer, dispatches, outs)
    return torch.cat(outs).to(torch.float32)


# --- the shared memory -----------------------------------------------------------------------

SMALL = RowsLayout(ranks=4, rows=6, hidden_size=8, top_k=2, dtype="float32")


def following_of(shared: Shared[RowsLayout], rank: int, spin: float = 0.0) -> FollowingRows:
    return FollowingRows(FollowingMemory(shared, rank, spin), shared.layout, rank)


def rows_of(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a dispatch of so many rows has."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(4, (count, 2), generator=generator, dtype=torch.int32)
    hidden = torch.randn(count, 8, generator=generator)
    return hidden, ids, torch.rand(count, 2, generator=generator)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_sums_are_in_the_order_of_ranks_whoever_is_done_first(dtype, order):
    shared = Shared.create(replace(SMALL, dtype=dtype))
    leading = LeadingRows(LeadingMemory(shared, "expert node 0", 0.0), shared.layout)
    others = {rank: following_of(shared, rank) for rank in (1, 2, 3)}
    for other in others.values():
        other.done()
    kind = getattr(torch, dtype)
    parts = [rows_of(2), rows_of(3)]
    messages = [(hidden.to(kind), ids, weights) for hidden, ids, weights in parts]
    leading.begin(7, *map(list, zip(*messages, strict=True)))
    scales = {1: 1e8, 2: -1e8, 3: 1.0}  # of which another order of additions gives another sum
    for rank in order:
        other = others[rank]
        assert other.wait(0.0) == Order(7, 5)
        given = other.given(5)
        for found, parts in zip(given, zip(*messages, strict=True), strict=True):
            assert torch.equal(found, torch.cat(parts))
        other.result(5).copy_(scales[rank] * (1 + given[0]))
        other.done()
    outs = [hidden.clone() for hidden, _, _ in messages]
    leading.add_to(outs)
    for out, (hidden, _, _) in zip(outs, messages, strict=True):
        total = hidden.to(torch.float32)
        for rank in (1, 2, 3):
            total = total + (scales[rank] * (1 + hidden)).to(torch.float32)
        assert torch.equal(out, total.to(kind))


def test_a_rank_that_does_not_answer_is_named_within_the_bound():
    shared = Shared.create(SMALL)
    leading = LeadingMemory(shared, "expert node 3", 0.0)
    for rank in (1, 3):
        FollowingMemory(shared, rank, 0.0).done()
    with pytest.raises(NodeDied, match=r"rank 2 of expert node 3 has not answered for 0\.01 s"):
        leading.orders.await_all(0.01)


@pytest.mark.parametrize("spin", [0.0, 1e-3], ids=["sleeping", "spinning"])
def test_no_order_and_no_answer_is_lost(spin):
    """Many orders over a thread that answers each: a wake-up that is missed would take a minute."""
    shared = Shared.create(replace(SMALL, ranks=2))
    road = LeadingMemory(shared, "expert node 0", spin)
    leading = LeadingRows(road, shared.layout)
    heard: list[Order] = []

    def follow() -> None:
        following = following_of(shared, 1, spin)
        following.done()
        while len(heard) < 2000:
            if (order := following.wait(5.0)) is not None:
                heard.append(order)
                following.done()

    thread = Thread(target=follow, daemon=True)
    thread.start()
    hidden, ids, weights = rows_of(1)
    for layer in range(1999):
        leading.begin(layer, [hidden], [ids], [weights])
    road.message()
    road.orders.await_all(5.0)
    thread.join(5.0)
    assert heard == [*(Order(layer, 1) for layer in range(1999)), Order(MESSAGE, 1)]


# --- what can't be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ffn_tp": 5},
            "--ffn-tp 5: that many ranks don't divide the 24 channels of this model's experts; use "
            "--ffn-tp 4",
        ),
        ({"ffn_tp": 48}, "use --ffn-tp 24"),
        (
            {"attn_tp": 3},
            "--attn-tp 3: layer 0's attention can't be shared by so many ranks: they don't divide "
            "its 4 heads; use --attn-tp 2",
        ),
        ({"attn_tp": 2, "kernels": "reference"}, "--attn-tp 2 needs the kernels for CPUs or GPUs"),
        ({"attn_tp": 2, "colocated": True}, "leave out --attn-tp 2"),
        ({"ffn_tp": 0}, "--ffn-tp must be a whole number of at least 1, not 0"),
        ({"ffn_tp": 2, "colocated": True}, "leave out --ffn-tp 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(tmp_path, options, message):
    folder = write_config("qwen3_moe", "gqa", tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_plan(EngineConfig(str(folder), **options), folder, read_machine())


def test_ranks_share_their_nodes_cores(tmp_path):
    folder = write_config("qwen3_moe", "gqa", tmp_path)
    machine = replace(read_machine(), cores=tuple(range(8)))
    plan = make_plan(EngineConfig(str(folder), 1, 1, ffn_tp=2, micro_batches=2), folder, machine)
    assert [own.cores for own in plan.process_cores] == [(0, 1, 2), (3, 4, 5), (6, 7)]
    assert plan.spin_seconds > 0
    crowded = make_plan(EngineConfig(str(folder), 4, 4, ffn_tp=2), folder, machine)
    assert [own.cores for own in crowded.process_cores[-2:]] == [(2,), (3,)]
    assert crowded.spin_seconds == 0


def test_a_plan_counts_ranks_in_words(tmp_path):
    folder = write_config("qwen3_moe", "gqa", tmp_path)
    machine = replace(read_machine(), cores=(0, 1, 2, 3))
    text, plain = (
        describe(make_plan(EngineConfig(str(folder), 1, 1, ffn_tp=tp), folder, machine))
        for tp in (2, 1)
    )
    assert any("2 ranks, cores 0,1 | 2,3  experts 0-7" in line for line in text)
    assert any("--ffn-gpus nodes of 2 ranks (processes)" in line for line in text)
    assert sum("shared by ranks" in line for line in text) == 1
    assert not any(" ranks" in line for line in plain)
