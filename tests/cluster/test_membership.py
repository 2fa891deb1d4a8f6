"""Another membership while requests are served: none is lost, no token changes or comes twice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest
import torch

from megainfer.attention_node.scheduling.step import Chunk
from megainfer.errors import ConfigError
from megainfer.messages.requests import Abort
from megainfer.models.registry import load_spec
from megainfer.topology import Membership, Owners, Placement, placement_of
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
NEW_TOKENS = 8
STEP_TOKENS = 16
MOMENTS = {"reference": (12, 30), "cpu": (1, 5, 9, 12, 16, 30, 60) if levels() else ()}
"""Turns before the change: among prompts' first chunks, their last ones, decoding. The C++ kernels
give a row the same bits whatever else is in its batch, and take less time."""
KERNELS = [kernels for kernels, moments in MOMENTS.items() if moments]
AT_MOMENTS = [(kernels, turns) for kernels, moments in MOMENTS.items() for turns in moments]


at_moments = pytest.mark.parametrize(("kernels", "turns"), AT_MOMENTS)
every_kernels = pytest.mark.parametrize("kernels", KERNELS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products, which threads of a busy machine only wait for each other with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    prompts: list[list[int]]
    expected: list[Greedy]


def written(family: str, variant: str, folder: Path) -> Checkpoint:
    write_checkpoint(family, variant, folder)
    prompts = partial(prompts_of, lengths=LENGTHS)
    return Checkpoint(folder, *decisive(oracle(folder), prompts, NEW_TOKENS))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return written("qwen3_moe", "gqa", tmp_path_factory.mktemp("membership"))


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory) -> Checkpoint:
    return written("qwen3_next", "grouped", tmp_path_factory.mktemp("recurrent"))


def opened(
    checkpoint: Checkpoint, kernels: str, placement: Placement | None = None
) -> LocalCluster:
    """2 attention and 3 expert nodes, 2 micro-batches."""
    return LocalCluster(
        checkpoint.folder,
        2,
        2,
        3,
        placement=placement,
        kernels=kernels,
        max_num_batched_tokens=STEP_TOKENS,
        prefix_cache=False,
    )


def replicated(checkpoint: Checkpoint) -> Placement:
    """Each expert on two of three nodes, on others in each layer, so that local ids differ too."""
    spec = load_spec(checkpoint.folder)

    def owners(layer: int) -> Owners:
        firsts = [(expert + expert // 3 * layer + layer) % 3 for expert in range(spec.num_experts)]
        return tuple((first, (first + 1 + layer % 2) % 3) for first in firsts)

    return placement_of(3, {layer: owners(layer) for layer in spec.moe_layers})


def moved(placement: Placement) -> Placement:
    """At home where the last replica was; each node holds what it did."""
    tables = {layer: placement.owners(layer) for layer in placement.layers}
    return placement_of(
        3, {layer: tuple(nodes[::-1] for nodes in table) for layer, table in tables.items()}
    )


def after(membership: Membership, placement: Placement | None = None) -> Membership:
    """The next epoch's."""
    return replace(
        membership, epoch=membership.epoch + 1, placement=placement or membership.placement
    )


def run_with(
    cluster: LocalCluster, checkpoint: Checkpoint, change: Callable[[], None], turns: int
) -> set[str]:
    """Serve all prompts, `change` after so many turns; what it interrupted."""
    submit_all(cluster, checkpoint.prompts, NEW_TOKENS, logprobs=3)
    for _ in range(turns):
        cluster.turn()
    steps = [step for node in cluster.attention for step in node.scheduler.steps_in_flight]
    interrupted = {what(chunk) for step in steps for chunk in step.chunks}
    change()
    cluster.check_integrity()
    cluster.drain()
    return interrupted


def what(chunk: Chunk) -> str:
    if chunk.sequence.num_outputs:
        return "decoding"
    return "a later chunk" if chunk.start else "a first chunk"


def answers(cluster: LocalCluster, checkpoint: Checkpoint) -> list[Answer]:
    return [cluster.answers[str(i)] for i in range(len(checkpoint.prompts))]


def undisturbed(checkpoint: Checkpoint, kernels: str) -> list[Answer]:
    cluster = opened(checkpoint, kernels)
    run_with(cluster, checkpoint, lambda: None, 0)
    return answers(cluster, checkpoint)


def served(cluster: LocalCluster) -> dict[tuple[int, int, int], int]:
    """Tokens so far by (layer, expert, node)."""
    counts = {}
    for node, unit in enumerate(cluster.experts):
        layers = cluster.plan.spec.moe_layers
        for layer, tokens in zip(layers, unit.counters()["expert_tokens"], strict=True):
            counts.update({(layer, expert, node): n for expert, n in tokens.items()})
    return counts


@every_kernels
def test_an_epoch_changes_nothing_but_time(checkpoint, kernels):
    want = undisturbed(checkpoint, kernels)
    seen: set[str] = set()
    for turns in MOMENTS[kernels]:
        cluster = opened(checkpoint, kernels)
        before = cluster.free_blocks()
        change = lambda: cluster.enter(after(cluster.membership))  # noqa: B023, E731
        seen |= run_with(cluster, checkpoint, change, turns)
        got = answers(cluster, checkpoint)
        assert_same_greedy(checkpoint.expected, [answer.tokens for answer in got])
        if kernels == "cpu":
            assert got == want, f"after {turns} turns"
        assert cluster.free_blocks() == before
    assert seen >= {"a later chunk", "decoding"}


@at_moments
def test_experts_move_between_nodes_in_each_layer_as_it_likes(checkpoint, kernels, turns):
    first = replicated(checkpoint)
    assert len({first.owners(layer) for layer in first.layers}) == len(first.layers) > 1
    cluster = opened(checkpoint, kernels, first)
    before: dict[tuple[int, int, int], int] = {}

    def change() -> None:
        before.update(served(cluster))
        cluster.enter(after(cluster.membership, moved(first)))

    run_with(cluster, checkpoint, change, turns)
    assert_same_greedy(checkpoint.expected, answers_of(cluster, checkpoint.prompts))
    grown = {place for place, count in served(cluster).items() if count > before[place]}
    homes = moved(first)
    assert grown
    assert all(homes.owners(layer)[expert][0] == node for layer, expert, node in grown)


@at_moments
def test_an_expert_node_leaves_to_its_replicas(checkpoint, kernels, turns):
    cluster = opened(checkpoint, kernels, replicated(checkpoint))

    def change() -> None:
        cluster.enter(cluster.membership.without_expert(1))
        cluster.experts[1].port.close()

    run_with(cluster, checkpoint, change, turns)
    assert_same_greedy(checkpoint.expected, answers_of(cluster, checkpoint.prompts))


@at_moments
def test_an_attention_node_leaves_and_nobody_waits_for_it(checkpoint, kernels, turns):
    """It only hangs: nothing but the membership tells that it is gone. Its own requests are for
    others to serve; here those of the node that stays are looked at."""
    cluster = opened(checkpoint, kernels)
    submit_all(cluster, checkpoint.prompts, NEW_TOKENS)
    for _ in range(turns):
        cluster.turn()
    cluster.enter(cluster.membership.without_attention(1))
    missed = [unit.counters()["missed"] for unit in cluster.experts]
    cluster.drain()
    assert_same_greedy(checkpoint.expected[::2], answers_of(cluster, checkpoint.prompts)[::2])
    assert [unit.counters()["missed"] for unit in cluster.experts] == missed


@every_kernels
def test_nodes_enter_in_any_order(checkpoint, kernels):
    """Some work in the old epoch while others are in the new one; what comes late is dropped and
    what comes early waits. One cluster, whose epoch rises with each order."""
    placement = replicated(checkpoint)
    cluster = opened(checkpoint, kernels, placement)
    dropped = [dropped_by(cluster)]
    # Expert nodes (from 2 on) are all alike, so one order among themselves stands for each.
    orders = [o for o in permutations(range(5)) if o.index(2) < o.index(3) < o.index(4)]
    if kernels == "reference":
        orders = orders[::7]
    for number, order in enumerate(orders):
        target = moved(placement) if number % 2 == 0 else placement
        change = lambda: cluster.enter(after(cluster.membership, target), order)  # noqa: B023, E731
        run_with(cluster, checkpoint, change, MOMENTS[kernels][number % len(MOMENTS[kernels])])
        assert_same_greedy(checkpoint.expected, answers_of(cluster, checkpoint.prompts))
        dropped.append(dropped_by(cluster))
    assert dropped[-1] > dropped[0], "no message was late"


def dropped_by(cluster: LocalCluster) -> int:
    return sum(unit.counters()["dropped"] for unit in cluster.members())


@every_kernels
def test_epochs_follow_each_other_faster_than_steps(checkpoint, kernels):
    """As long as they do nothing is computed, and nothing is lost."""
    cluster = opened(checkpoint, kernels)

    def change() -> None:
        for _ in range(10):
            cluster.enter(after(cluster.membership))
            cluster.turn()

    run_with(cluster, checkpoint, change, 4)
    assert_same_greedy(checkpoint.expected, answers_of(cluster, checkpoint.prompts))


@every_kernels
def test_recurrent_states_begin_again(recurrent, kernels):
    """What a state has taken in can't be taken back."""
    for turns in MOMENTS[kernels]:
        cluster = opened(recurrent, kernels)
        change = lambda: cluster.enter(after(cluster.membership))  # noqa: B023, E731
        run_with(cluster, recurrent, change, turns)
        assert_same_greedy(recurrent.expected, answers_of(cluster, recurrent.prompts))


def test_an_abort_that_waited_for_its_step_takes_effect(checkpoint):
    cluster = opened(checkpoint, "auto")
    before = cluster.free_blocks()
    cluster.submit(0, greedy_submit("doomed", checkpoint.prompts[-1], 60))
    cluster.turn()
    cluster.attention[0].hear(Abort("doomed"))
    assert list(cluster.attention[0].scheduler.live)
    cluster.enter(after(cluster.membership))
    assert cluster.answers["doomed"].finish_reason == "abort"
    assert not list(cluster.attention[0].scheduler.live)
    assert cluster.free_blocks() == before


def test_a_placement_that_needs_other_weights_is_refused(checkpoint):
    placement = replicated(checkpoint)
    cluster = opened(checkpoint, "auto", placement)
    everywhere = placement_of(
        3, dict.fromkeys(placement.layers, ((0, 1, 2),) * placement.num_experts)
    )
    with pytest.raises(ConfigError, match=r"expert node 0 holds the experts \[.*\] of layer 0, by"):
        cluster.experts[0].enter(after(cluster.membership, everywhere))
    fewer = placement_of(3, dict.fromkeys(placement.layers, ((0,), (1,), (2,))))
    with pytest.raises(ConfigError, match="layers had 8 experts, by the new placement they have 3"):
        cluster.attention[0].enter(after(cluster.membership, fewer))
