"""Experts move while requests are served: nothing waits, nothing is lost, and no token changes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from safetensors.torch import load_file, save_file

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts
from megainfer.errors import ConfigError
from megainfer.expert_node.moving import Mover
from megainfer.messages.from_child import Prepared
from megainfer.messages.to_child import Prepare
from megainfer.models.registry import load_spec
from megainfer.planner.balancing import Balancer
from megainfer.topology import (
    EMPTY,
    WAYS,
    Membership,
    Placement,
    Table,
    contiguous_placement,
    placed,
)
from tests.support.checkpoints import (
    Greedy,
    assert_same_greedy,
    decisive,
    oracle,
    write_checkpoint,
)
from tests.support.kernel_experts import levels
from tests.support.local_cluster import (
    Answer,
    LocalCluster,
    answers_of,
    greedy_submit,
    prompts_of,
    submit_all,
)

LENGTHS = (5, 17, 40, 33)
NEW_TOKENS = 40
SECONDS = 30.0
TURNS = 5  # of everybody, while experts are read
COPIES = 4  # of each prompt, where much must be counted
KERNELS = ["reference", *(["cpu"] if levels() else [])]
every_kernels = pytest.mark.parametrize("kernels", KERNELS)


Checkpoint = tuple[Path, list[list[int]], list[Greedy]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products, which threads of a busy machine only wait for each other with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("moving"))
    prompts = partial(prompts_of, lengths=LENGTHS)
    return folder, *decisive(oracle(folder), prompts, NEW_TOKENS)


def opened(folder: Path, kernels: str, placement: Placement | None = None) -> LocalCluster:
    """2 attention and 3 expert nodes, 2 micro-batches."""
    return LocalCluster(folder, 2, 2, 3, placement=placement, kernels=kernels)


def movers_of(cluster: LocalCluster) -> list[Mover]:
    reader = partial(WeightReader, cluster.plan.folder)
    return [Mover(node._model, reader) for node in cluster.experts]


def prepared(cluster: LocalCluster, movers: list[Mover], wish: Prepare) -> list[Prepared]:
    """What all say in the end. The cluster goes on meanwhile, for some turns: on a busy machine the
    reading could take longer than all requests."""
    for mover in movers:
        mover.prepare(wish)
    said: list[Prepared] = []
    deadline = monotonic() + SECONDS
    for turn in count():
        if len(said) == len(movers):
            break
        if turn < TURNS:
            cluster.turn()
        else:
            sleep(0.002)
        said += [word for mover in movers for word in mover.news()]
        assert monotonic() < deadline, f"{len(said)} of {len(movers)} have read their experts"
    return said


def after(membership: Membership, placement: Placement, experts: tuple[int, ...]) -> Membership:
    return replace(membership, epoch=membership.epoch + 1, placement=placement, experts=experts)


def live_in(first: Placement) -> Placement:
    """From each node's first slots others' experts; shared in other parts in each layer."""

    def table(layer: int) -> Table:
        (a, *own), (b, *others), (c, *rest) = first.table(layer).experts
        first_ways = 3 + layer
        return Table(
            ((b, *own, c), (a, *others, b), (c, *rest, EMPTY)),
            (
                (first_ways, *(WAYS,) * len(own), 4),
                (WAYS, *(WAYS,) * len(others), WAYS - first_ways),
                (WAYS - 4, *(WAYS,) * len(rest), 0),
            ),
        )

    return placed(first.num_experts, {layer: table(layer) for layer in first.layers})


@every_kernels
def test_experts_move_while_requests_are_served(checkpoint, kernels):
    folder, prompts, expected = checkpoint
    cluster = opened(folder, kernels)
    first, movers = cluster.plan.placement, movers_of(cluster)
    submit_all(cluster, prompts, NEW_TOKENS)
    for ticket, target in enumerate((live_in(first), first, live_in(first))):
        said = prepared(cluster, movers, Prepare(ticket, target))
        assert said == [Prepared(ticket)] * 3
        served = [node.counters()["expert_tokens"] for node in cluster.experts]
        cluster.enter(after(cluster.membership, target, (0, 1, 2)))
        assert [node._model.held for node in cluster.experts] == [
            target.slots_of(node) for node in range(3)
        ]
        told = [node.counters()["expert_tokens"] for node in cluster.experts]
        for before, now in zip(served, told, strict=True):
            for old, new in zip(before, now, strict=True):
                assert {expert: new[expert] for expert in old} == old, "what was served is told on"
    assert any(list(node.scheduler.live) for node in cluster.attention), "all had ended before"
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))


@pytest.fixture(scope="module")
def skewed(tmp_path_factory) -> Checkpoint:
    """Experts of the first node are chosen far more often than others."""
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("skewed"))
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("mlp.gate.weight"):
            tensor[:3] *= 8
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    prompts = partial(prompts_of, lengths=LENGTHS)
    return folder, *decisive(oracle(folder), prompts, NEW_TOKENS)


@every_kernels
def test_a_balancer_moves_experts_and_no_token_changes(skewed, kernels):
    folder, prompts, expected = skewed
    first = contiguous_placement(8, 3, load_spec(folder).moe_layers, replicas=1)
    cluster, proposals = opened(folder, kernels, first), 0
    movers, balancer = movers_of(cluster), Balancer([*first.layers], 8)
    prompts, expected = COPIES * prompts, COPIES * expected
    submit_all(cluster, prompts, NEW_TOKENS)
    while any(list(node.scheduler.live) for node in cluster.attention):
        for _ in range(30):
            cluster.turn()
        for node, unit in enumerate(cluster.experts):
            balancer.hear(node, unit.counters())
        proposal = balancer.propose(cluster.membership)
        if proposal is not None:
            proposals += 1
            said = prepared(cluster, movers, Prepare(proposals, proposal.placement))
            assert said == [Prepared(proposals)] * 3
            cluster.enter(after(cluster.membership, proposal.placement, (0, 1, 2)))
    assert proposals
    assert cluster.membership.placement != first
    assert_same_greedy(expected, answers_of(cluster, prompts))


@every_kernels
def test_nodes_leave_and_come_back_without_a_replica(checkpoint, kernels):
    """Two nodes take all experts over, in more slots than they had; then there are three again."""
    folder, prompts, expected = checkpoint
    cluster = opened(folder, kernels)
    three, movers = cluster.plan.placement, movers_of(cluster)
    two = contiguous_placement(three.num_experts, 2, three.layers)
    submit_all(cluster, prompts, NEW_TOKENS)
    for ticket, (target, nodes) in enumerate([(two, (0, 1)), (three, (0, 1, 2))]):
        assert {word.error for word in prepared(cluster, movers, Prepare(ticket, target))} == {None}
        cluster.enter(after(cluster.membership, target, nodes))
        cluster.turn()
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))


@pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")
def test_a_row_has_its_bits_whatever_else_is_in_its_batch(checkpoint):
    folder, prompts, _ = checkpoint
    first = contiguous_placement(8, 3, opened(folder, "cpu").plan.placement.layers)
    together = opened(folder, "cpu", live_in(first))
    submit_all(together, prompts, NEW_TOKENS, logprobs=3)
    together.drain()
    for number, prompt in enumerate(prompts):
        alone = opened(folder, "cpu", live_in(first))
        alone.submit(1, greedy_submit("alone", prompt, NEW_TOKENS, logprobs=3))
        alone.drain()
        expected: Answer = together.answers[str(number)]
        assert alone.answers["alone"] == expected


def test_a_newer_wish_takes_the_place_of_an_older_one(checkpoint):
    folder, *_ = checkpoint
    cluster = opened(folder, "auto")
    mover, model = movers_of(cluster)[0], cluster.experts[0]._model
    first = cluster.plan.placement
    everything = contiguous_placement(first.num_experts, 1, first.layers)
    mover.prepare(Prepare(1, everything))
    mover.prepare(Prepare(2, everything))
    mover.prepare(Prepare(3, live_in(first)))
    assert until_said(mover) == [Prepared(3)]
    needed = {
        (layer, expert)
        for layer, slots in live_in(first).slots_of(0).items()
        for expert in set(slots) - set(first.slots_of(0)[layer])
    }
    assert set(model._aside) == needed
    with_all = len(model.missing(everything))
    mover.prepare(Prepare(4, everything))
    assert with_all == 5 * len(first.layers) - len(needed), "what was read is read once"
    assert until_said(mover) == [Prepared(4)]
    assert model.missing(everything) == []
    layer = model.layer(first_layer(first))
    free = layer.kernel.free_memory if isinstance(layer, CpuLayerExperts) else None
    mover.prepare(Prepare(5, first))
    assert mover.news() == [Prepared(5)], "there is nothing to read"
    assert not model._aside
    assert free is None or len(free) == 5 * len(first.layers)


def test_what_cannot_be_read_is_said(checkpoint, tmp_path):
    folder, *_ = checkpoint
    cluster = opened(folder, "auto")
    first, model = cluster.plan.placement, cluster.experts[0]._model
    mover = Mover(model, partial(WeightReader, tmp_path))
    mover.prepare(Prepare(1, live_in(first)))
    (word,) = until_said(mover)
    assert word.ticket == 1
    assert str(tmp_path) in str(word.error)
    with pytest.raises(ConfigError, match=r"of which \d+ is not loaded"):
        cluster.experts[0].enter(after(cluster.membership, live_in(first), (0, 1, 2)))
    assert model.held == first.slots_of(0)
    mover.prepare(Prepare(2, first))
    assert mover.news() == [Prepared(2)], "it wishes for nothing that isn't there"


def until_said(mover: Mover) -> list[Prepared]:
    deadline = monotonic() + SECONDS
    while not (said := mover.news()):
        assert monotonic() < deadline, "nothing was said"
        sleep(mover.sleep_bound(1.0))
    return said


def first_layer(placement: Placement) -> int:
    return next(iter(placement.layers))
