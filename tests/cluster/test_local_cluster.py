"""Whole nodes over `local`, and over `dist`: scheduler, pipeline, gather and kernels together."""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from megainfer.attention_node.node import AttentionNode
from megainfer.config import BLOCK_SIZE
from megainfer.errors import MegaInferError, NodeDied
from megainfer.m2n.dist.channel import Channel
from megainfer.m2n.mailbox import Part
from megainfer.messages.requests import Abort, FinishReason, TokenLogprobs
from megainfer.models.registry import load_spec
from tests.support.checkpoints import (
    FAMILIES,
    VARIANTS,
    Greedy,
    assert_same_greedy,
    decisive,
    oracle,
    write_checkpoint,
)
from tests.support.dist_cluster import DistCluster
from tests.support.local_cluster import (
    NEW_TOKENS,
    VOCABULARY,
    LocalCluster,
    answers_of,
    greedy_submit,
    prompts_of,
    submit_all,
)

# The first shape of each family, and layers of several kinds; what the others compute is compared
# in tests/compute/test_models_parity.py, and what nodes do with it is the same.
WHOLE = {(family, next(iter(shapes))) for family, shapes in FAMILIES.items()} | {
    ("glm4_moe_lite", "groups_dense_between"),
    ("llama4_text", "maverick"),
    ("qwen2_moe", "dense_between"),
    ("qwen3_next", "odd_dense_last"),
}
every_variant = pytest.mark.parametrize(
    "reference",
    [
        pytest.param(pair, marks=() if pair in WHOLE else pytest.mark.slow, id="-".join(pair))
        for pair in VARIANTS
    ],
    indirect=True,
    scope="module",
)
one_variant = pytest.mark.parametrize(
    "reference", [("qwen3_moe", "gqa")], indirect=True, ids=["qwen3"], scope="module"
)


NewCluster = Callable[..., LocalCluster]
# Each pair of node counts, and each m; all of them together are slow.
QUICK = {((1, 1), 2), ((2, 1), 3), ((1, 2), 1), ((2, 3), 2), ((2, 3), 3)}
OVER_A_NETWORK = [
    pytest.param(nodes, m, marks=() if (nodes, m) in QUICK else pytest.mark.slow)
    for nodes in ((1, 1), (2, 1), (1, 2), (2, 3))
    for m in (1, 2, 3)
]


@pytest.fixture(params=[LocalCluster, DistCluster], ids=["local", "dist"])
def new_cluster(request: pytest.FixtureRequest) -> Iterator[NewCluster]:
    """Makes clusters of whole nodes on one of the roads."""
    made: list[LocalCluster] = []

    def make(*args: Any, **options: Any) -> LocalCluster:
        made.append(request.param(*args, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@one_variant
@pytest.mark.parametrize(("nodes", "m"), OVER_A_NETWORK, ids=str)
def test_tokens_equal_transformers_over_a_network(reference, nodes, m):
    folder, prompts, expected = reference
    cluster = DistCluster(folder, m, *nodes, max_num_batched_tokens=24)
    submit_all(cluster, prompts)
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))
    cluster.close()


@one_variant
@pytest.mark.parametrize("seed", range(3))
def test_links_that_are_slow_by_turns_change_nothing(reference, monkeypatch, seed):
    """Peers' messages overtake each other, one peer's never do."""
    folder, prompts, expected = reference
    lots, receive = random.Random(seed), Channel.receive

    def late(channel: Channel, payload: torch.Tensor, seconds: float, tag: int = 0) -> None:
        time.sleep(lots.choice((0.0, 0.0, 1e-4, 4e-3)))  # the fault itself: a slow link
        receive(channel, payload, seconds, tag)

    cluster = DistCluster(folder, 3, 2, 3, max_num_batched_tokens=24)
    monkeypatch.setattr(Channel, "receive", late)
    submit_all(cluster, prompts)
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))
    cluster.close()


def by_token(row: TokenLogprobs) -> list[float]:
    return [row.values[token] for token in range(VOCABULARY)]


@every_variant
def test_tokens_and_logits_equal_transformers(reference):
    folder, prompts, expected = reference
    expert_nodes = min(3, load_spec(folder).num_experts)  # a dense model has one
    cluster = LocalCluster(folder, 3, 2, expert_nodes, max_num_batched_tokens=24)
    submit_all(cluster, prompts, logprobs=-1)
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))
    for i, want in enumerate(expected):
        got = torch.tensor([by_token(row) for row in cluster.answers[str(i)].logprobs])
        torch.testing.assert_close(got, want.logits.log_softmax(-1), atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def growing(tmp_path_factory) -> tuple[Path, list[list[int]], list[Greedy]]:
    """Short prompts whose answers are long: their blocks run out while they are running."""
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("growing"))
    lengths = (3, 9, 14, 15, 16, 20)
    return folder, *decisive(oracle(folder), lambda seed: prompts_of(seed, lengths), 40)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_preemption_changes_nothing(growing, new_cluster, m):
    folder, prompts, expected = growing
    blocks = 7  # one request of 96 tokens needs 6
    room = blocks * 16 * load_spec(folder).kv_bytes_per_token(4)
    cluster = new_cluster(
        folder, m, 1, 2, max_model_len=96, kv_cache_memory=room, max_num_batched_tokens=16
    )
    submit_all(cluster, prompts, tokens=40)
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))
    assert cluster.attention[0].scheduler.counters()["preemptions"] > 0
    assert cluster.free_blocks() == [blocks]


@one_variant
@pytest.mark.parametrize("m", [1, 2])
def test_prefix_hits_change_nothing(reference, new_cluster, m):
    folder, prompts, expected = reference
    cluster = new_cluster(folder, m, 1, 2, max_num_batched_tokens=16)
    submit_all(cluster, prompts)
    cluster.drain()
    first = [cluster.answers[str(i)].cached_tokens for i in range(len(prompts))]
    submit_all(cluster, prompts)
    cluster.drain()
    again = [cluster.answers[str(i)].cached_tokens for i in range(len(prompts))]
    # All full blocks but the one of the last token, which must always be computed.
    assert again == [(len(prompt) - 1) // 16 * 16 for prompt in prompts]
    assert first != again
    assert_same_greedy(expected, answers_of(cluster, prompts))


@one_variant
@pytest.mark.parametrize("m", [1, 2, 3])
def test_aborts_in_the_middle_free_everything_and_touch_nobody_else(reference, new_cluster, m):
    folder, prompts, expected = reference
    cluster = new_cluster(folder, m, 2, 2, max_num_batched_tokens=16)
    before = cluster.free_blocks()
    submit_all(cluster, prompts)
    for i, prompt in enumerate(prompts):
        cluster.submit(i % 2, greedy_submit(f"doomed-{i}", prompt, 60))
    for i in range(len(prompts)):
        for _ in range(7 * i):
            cluster.turn()
        cluster.attention[i % 2].hear(Abort(f"doomed-{i}"))
        cluster.check_integrity()
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))
    cut = [cluster.answers[f"doomed-{i}"] for i in range(len(prompts))]
    assert all(len(answer.tokens) < 60 for answer in cut)
    for answer, want in zip(cut, expected, strict=True):
        assert answer.tokens[:NEW_TOKENS] == want.tokens[: len(answer.tokens)]
    assert cluster.free_blocks() == before


@one_variant
def test_a_seed_gives_the_same_tokens_whatever_else_is_served(reference):
    folder, prompts, _ = reference

    def sampled(crowd: int, m: int) -> list[int]:
        cluster = LocalCluster(folder, m, 1, 2)
        submit_all(cluster, prompts[:crowd])
        wish = greedy_submit("me", prompts[3], 20)
        cluster.submit(0, msgspec.structs.replace(wish, temperature=0.8, top_p=0.9, seed=5))
        cluster.drain()
        return cluster.answers["me"].tokens

    alone = sampled(0, 1)
    assert len(set(alone)) > 3
    assert sampled(6, 1) == alone
    assert sampled(6, 3) == alone


@one_variant
def test_an_experts_failure_ends_its_requests_and_nothing_else(reference, new_cluster, monkeypatch):
    folder, prompts, expected = reference
    cluster = new_cluster(folder, 2, 2, 2)
    before = cluster.free_blocks()
    submit_all(cluster, prompts)
    model = cluster.experts[1]._model
    compute, failures = model.forward, []

    def fail_once(layer, dispatches, outs):
        if layer == 1 and not failures:
            failures.append([d.source for d in dispatches])
            raise MegaInferError("out of luck")
        compute(layer, dispatches, outs)

    monkeypatch.setattr(model, "forward", fail_once)
    cluster.drain()
    failed = [a.failure for a in cluster.answers.values() if a.failure]
    assert failures
    assert failed
    assert all(
        "expert node 1 failed at layer 1" in text and "out of luck" in text for text in failed
    )
    survivors = [i for i in range(len(prompts)) if not cluster.answers[str(i)].failure]
    assert_same_greedy(
        [expected[i] for i in survivors], [cluster.answers[str(i)].tokens for i in survivors]
    )
    assert cluster.free_blocks() == before
    again = prompts[4]
    cluster.submit(0, greedy_submit("again", again, NEW_TOKENS))
    cluster.drain()
    assert_same_greedy([expected[4]], [cluster.answers["again"].tokens])


@one_variant
def test_logits_that_are_not_finite_fail_the_request_alone(reference, monkeypatch):
    folder, prompts, expected = reference
    cluster = LocalCluster(folder, 1, 1, 1)
    before = cluster.free_blocks()
    model = cluster.attention[0]._model
    embed, poison = model.embed, 159
    assert all(poison not in prompt for prompt in prompts[:3])

    def overflow(batch):
        x = embed(batch)
        return x.masked_fill_((batch.token_ids == poison)[:, None], float("inf"))

    monkeypatch.setattr(model, "embed", overflow)
    cluster.submit(0, greedy_submit("bad", [0, poison], NEW_TOKENS))
    submit_all(cluster, prompts[:3])
    cluster.drain()
    assert "logits are not finite" in cluster.answers["bad"].failure
    assert not cluster.answers["bad"].tokens
    assert not any(cluster.answers[str(i)].failure for i in range(3))
    assert_same_greedy(expected[:3], answers_of(cluster, prompts[:3]))
    assert cluster.free_blocks() == before


@one_variant
def test_a_prompt_whose_keys_are_no_numbers_is_computed_anew_when_asked_again(
    reference, monkeypatch
):
    folder, prompts, expected = reference
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    assert len(prompts[longest]) > BLOCK_SIZE, "a whole block, which the prefix cache may hold"
    cluster = LocalCluster(folder, 1, 1, 1)
    model = cluster.attention[0]._model
    embed = model.embed
    with monkeypatch.context() as overflowing:
        overflowing.setattr(model, "embed", lambda batch: embed(batch).fill_(float("nan")))
        cluster.submit(0, greedy_submit("bad", prompts[longest], NEW_TOKENS))
        cluster.drain()
    assert "logits are not finite" in cluster.answers["bad"].failure
    submit_all(cluster, [prompts[longest]])
    cluster.drain()
    assert_same_greedy(expected[longest : longest + 1], answers_of(cluster, [prompts[longest]]))


def run_for_ever(node: AttentionNode) -> None:
    while True:
        node.run_once()


@one_variant
def test_an_expert_node_that_never_answers_is_named(reference):
    folder, prompts, _ = reference
    cluster = LocalCluster(folder, 2, 1, 2, reply_timeout=0.05)
    submit_all(cluster, prompts)
    (attention,) = cluster.attention
    with pytest.raises(NodeDied, match="expert node 0 has not answered layer 0 of micro-batch 0"):
        run_for_ever(attention)  # the experts get no turn


@one_variant
def test_token_ids_outside_the_vocabulary_fail_the_request_alone(reference):
    folder, prompts, expected = reference
    cluster = LocalCluster(folder, 1, 1, 1)
    cluster.submit(0, greedy_submit("bad", [0, 160], 4))
    submit_all(cluster, prompts[:2])
    cluster.drain()
    assert cluster.answers["bad"].failure == "prompt: token id 160 is not in the vocabulary of 160"
    assert_same_greedy(expected[:2], answers_of(cluster, prompts[:2]))


def force_choice(folder: Path, top_k: int) -> None:
    """Rewrite the checkpoint so that every token chooses expert 0, or experts 0 and 1, unevenly.

    The norm before the router keeps one channel, which the embedding and every output projection
    hold at a constant positive value; the routers look at that channel alone.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": top_k}))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, weight in tensors.items():
        if name.endswith("embed_tokens.weight"):
            weight[:, 0] = 4.0
        elif name.endswith(("o_proj.weight", "w2.weight")):
            weight[0] = 0.0  # nothing is ever added to channel 0
        elif name.endswith("gate.weight"):
            weight.zero_()
            weight[0, 0], weight[1, 0] = 2.0, 1.5
        elif name.endswith("norm.weight"):
            weight[0] = 1.0
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(("m", "top_k"), [(1, 1), (2, 1), (2, 2)])
def test_total_skew_and_an_expert_node_that_never_gets_a_token(tmp_path, m, top_k):
    """All tokens choose the first expert or two, on node 0; nodes 1 to 3 only see headers."""
    folder = write_checkpoint("mixtral", "gqa", tmp_path)
    force_choice(folder, top_k)
    prompts, expected = decisive(oracle(folder), prompts_of, NEW_TOKENS)
    cluster = LocalCluster(folder, m, 2, 4)
    submit_all(cluster, prompts)
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))
    busy, *idle = [node._model.counters()["expert_tokens"] for node in cluster.experts]
    assert all(layer[0] > 0 for layer in busy)
    assert all(bool(layer[1]) == (top_k == 2) for layer in busy)
    assert not any(any(layer.values()) for node in idle for layer in node)


@one_variant
def test_a_batch_of_one_uses_one_micro_batch_and_finishes(reference):
    folder, prompts, expected = reference
    cluster = LocalCluster(folder, 4, 1, 3)
    cluster.submit(0, greedy_submit("one", prompts[0], NEW_TOKENS))
    cluster.drain()
    assert cluster.answers["one"].finish_reason is FinishReason.LENGTH
    assert_same_greedy(expected[:1], [cluster.answers["one"].tokens])


@one_variant
def test_chunks_of_one_prompt_fly_in_both_micro_batches(reference):
    folder, prompts, expected = reference
    cluster = LocalCluster(folder, 2, 1, 2, max_num_batched_tokens=16)
    longest = len(prompts) - 1
    cluster.submit(0, greedy_submit("long", prompts[longest], NEW_TOKENS))
    together = 0
    while not cluster.answers["long"].tokens:
        cluster.turn()
        together = max(together, len(cluster.attention[0].scheduler.steps_in_flight))
    cluster.drain()
    assert together == 2
    assert_same_greedy([expected[longest]], [cluster.answers["long"].tokens])


@pytest.mark.parametrize("layer", [-1 % 2**32, 3, 2**31])
@one_variant
def test_a_layer_without_experts_is_its_senders_mistake(reference, layer):
    """The expert node says so, and goes on serving."""
    folder, prompts, expected = reference
    cluster = LocalCluster(folder, 2, 1, 1)
    sender = cluster.attention[0].port
    hidden = torch.zeros(1, cluster.plan.spec.hidden_size)
    choices = torch.zeros(1, cluster.plan.spec.top_k)
    sender.dispatch(1, layer, hidden, [Part(torch.tensor([0]), choices.int(), choices)])
    cluster.experts[0].run_once()
    (arrival,) = sender.poll()
    assert arrival.error == f"layer {layer} has no experts on expert node 0"
    submit_all(cluster, prompts)
    cluster.drain()
    assert_same_greedy(expected, answers_of(cluster, prompts))
