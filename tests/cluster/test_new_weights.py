"""Other weights while requests are served: no step mixes two versions, and nothing of the old ones
is in what the new ones compute."""

import weakref
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from megainfer.topology import Membership, WeightVersion
from tests.support.checkpoints import write_checkpoint
from tests.support.kernel_experts import levels
from tests.support.local_cluster import (
    Answer,
    LocalCluster,
    answers_of,
    greedy_submit,
    prompts_of,
    submit_all,
)

NEW = WeightVersion(1, "new")
LENGTHS = (5, 17, 40, 33)
NEW_TOKENS = 24
BEGUN = 6  # tokens that the requests have before other weights come
KERNELS = ["reference", *(["cpu"] if levels() else [])]
FAMILIES = [
    ("qwen3_moe", "gqa"),
    ("qwen3_next", "grouped"),  # recurrent states
    ("deepseek_v3", "groups"),  # latent attention, a shared expert
    ("gpt_oss", "alternating"),  # biases
    ("olmoe", "gqa_clip_tied"),  # the embedding is the head
]


class Twins:
    """Two checkpoints of one shape."""

    def __init__(self, folder: Path, family: str, variant: str) -> None:
        self.old = write_checkpoint(family, variant, folder / "old", seed=0)
        self.new = write_checkpoint(family, variant, folder / "new", seed=1)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tmp_path_factory.mktemp("twins"), "qwen3_moe", "gqa")


def opened(folder: Path, kernels: str = KERNELS[-1], **options: int) -> LocalCluster:
    """2 attention and 2 expert nodes, 2 micro-batches."""
    return LocalCluster(folder, 2, 2, 2, kernels=kernels, **options)


def renewed(membership: Membership) -> Membership:
    return replace(membership, epoch=membership.epoch + 1, weights=NEW)


def begin(cluster: LocalCluster, prompts: list[list[int]]) -> None:
    """Serve until some have so many tokens."""
    submit_all(cluster, prompts, NEW_TOKENS)
    while max(len(answer.tokens) for answer in cluster.answers.values()) < BEGUN:
        cluster.turn()


def greedy_of(folder: Path, kernels: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    cluster = opened(folder, kernels)
    submit_all(cluster, prompts, tokens)
    cluster.drain()
    return answers_of(cluster, prompts)


def check_answers(
    twins: Twins, cluster: LocalCluster, kernels: str, prompts: list[list[int]]
) -> None:
    """What came with the old weights is theirs; what came with the new ones is as if these had been
    given the prompt and all tokens before."""
    answers = [cluster.answers[str(i)] for i in range(len(prompts))]
    counts = [answer.weights.count("0") for answer in answers]
    assert max(counts) >= BEGUN
    for answer, count in zip(answers, counts, strict=True):
        assert answer.failure is None
        assert answer.weights == ["0"] * count + ["new"] * (NEW_TOKENS - count)
    before = greedy_of(twins.old, kernels, prompts, NEW_TOKENS)
    longer = [prompt + a.tokens[:n] for prompt, a, n in zip(prompts, answers, counts, strict=True)]
    after = greedy_of(twins.new, kernels, longer, NEW_TOKENS)
    for answer, count, old, new in zip(answers, counts, before, after, strict=True):
        assert answer.tokens == old[:count] + new[: NEW_TOKENS - count]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_requests_go_on_with_the_new_weights(tmp_path: Path, family, kernels: str) -> None:
    twins = Twins(tmp_path, *family)
    prompts = prompts_of(0, LENGTHS)
    cluster = opened(twins.old, kernels)
    begin(cluster, prompts)
    cluster.enter(renewed(cluster.membership), switches=cluster.switches_to(twins.new))
    cluster.drain()
    check_answers(twins, cluster, kernels, prompts)


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_nobody_waits_for_anybody_to_have_them(twins: Twins, order: tuple[int, ...]) -> None:
    prompts = prompts_of(1, LENGTHS)
    cluster = opened(twins.old)
    begin(cluster, prompts)
    switches = cluster.switches_to(twins.new)
    cluster.enter(renewed(cluster.membership), order, switches)
    cluster.drain()
    check_answers(twins, cluster, KERNELS[-1], prompts)


def test_no_prefix_of_the_old_weights_is_found(twins: Twins) -> None:
    cluster = opened(twins.old)
    prompt = prompts_of(2, (48,))[0]

    def cached(name: str) -> int:
        cluster.submit(0, greedy_submit(name, prompt, 1))
        cluster.drain()
        return cluster.answers[name].cached_tokens

    assert [cached("a"), cached("b")] == [0, 32]
    cluster.submit(0, greedy_submit("running", prompt, NEW_TOKENS))  # holds the prefix's blocks
    while not cluster.answers["running"].tokens:
        cluster.turn()
    cluster.enter(renewed(cluster.membership), switches=cluster.switches_to(twins.new))
    cluster.drain()
    hits = cluster.attention[0].scheduler.counters()["prefix_hit_tokens"]
    assert hits == 32 + 32, "b's and the running one's under the old weights"
    assert [cached("c"), cached("d")] == [32, 32], "of what the running one has computed anew"


@torch.inference_mode()
def continued(twins: Twins, tokens: list[int], stale: int, count: int) -> list[int]:
    """What the new weights say greedily after tokens of which the old ones have read `stale`."""
    old, new = (AutoModelForCausalLM.from_pretrained(f) for f in (twins.old, twins.new))
    past = old(torch.tensor([tokens[:stale]]), use_cache=True).past_key_values
    rest, said = tokens[stale:], list[int]()
    while len(said) < count:
        read = new(torch.tensor([rest]), past_key_values=past, use_cache=True)
        past, rest = read.past_key_values, [int(read.logits[0, -1].argmax())]
        said += rest
    return said


def test_who_asks_goes_on_from_the_old_weights_keys(twins: Twins) -> None:
    cluster = opened(twins.old)
    prompt = prompts_of(4, (50,))[0]

    def ask(name: str, tokens: list[int], stale: bool) -> Answer:
        wish = msgspec.structs.replace(greedy_submit(name, tokens, 20), stale_prefix=stale)
        cluster.submit(0, wish)
        cluster.drain()
        return cluster.answers[name]

    begun = [*prompt, *ask("window", prompt, stale=False).tokens]
    cluster.enter(renewed(cluster.membership), switches=cluster.switches_to(twins.new))
    window = ask("next window", begun, stale=True)
    assert (window.cached_tokens, set(window.stale_tokens)) == (64, {64})
    assert window.tokens == continued(twins, begun, 64, 20)
    anew = greedy_of(twins.new, KERNELS[-1], [begun], 20)[0]
    assert anew != window.tokens

    other = ask("other", [*begun, *window.tokens], stale=False)
    assert (other.cached_tokens, set(other.stale_tokens)) == (0, {0})
    assert other.tokens == greedy_of(twins.new, KERNELS[-1], [[*begun, *window.tokens]], 20)[0]
    again = ask("again", begun, stale=True)
    assert (again.cached_tokens, set(again.stale_tokens)) == (64, {0}), "there are new ones now"
    assert again.tokens == anew


def test_requests_that_run_go_on_from_their_own_keys_where_they_ask(twins: Twins) -> None:
    cluster = opened(twins.old)
    prompt = prompts_of(5, (40,))[0]
    wish = msgspec.structs.replace(greedy_submit("a", prompt, NEW_TOKENS), stale_prefix=True)
    cluster.submit(0, wish)
    answer = cluster.answers["a"]
    while len(answer.tokens) < BEGUN:
        cluster.turn()
    cluster.enter(renewed(cluster.membership), switches=cluster.switches_to(twins.new))
    cluster.drain()
    count = answer.weights.count("0")
    assert answer.stale_tokens == [0] * count + [32] * (NEW_TOKENS - count)
    begun = [*prompt, *answer.tokens[:count]]
    assert answer.tokens[count:] == continued(twins, begun, 32, NEW_TOKENS - count)


def test_scores_of_a_prompt_are_all_of_the_same_weights(twins: Twins) -> None:
    prompt = prompts_of(3, (60,))[0]

    def submit(cluster: LocalCluster) -> None:
        wish = greedy_submit("scored", prompt, 2)
        cluster.submit(0, msgspec.structs.replace(wish, prompt_logprobs=2))

    cluster = opened(twins.old, max_num_batched_tokens=16)
    submit(cluster)
    (sequence,) = cluster.attention[0].scheduler.live
    while len(sequence.prompt_logprobs) < 20:
        cluster.turn()
    cluster.enter(renewed(cluster.membership), switches=cluster.switches_to(twins.new))
    cluster.drain()
    fresh = opened(twins.new, max_num_batched_tokens=16)
    submit(fresh)
    fresh.drain()
    scores, expected = (c.answers["scored"].prompt_logprobs for c in (cluster, fresh))
    assert scores is not None
    assert expected is not None
    assert len(scores) == len(prompt) - 1
    if KERNELS[-1] == "cpu":
        assert scores == expected
    else:
        assert [list(row.values) for row in scores] == [list(row.values) for row in expected]


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_old_weights_are_gone_at_once(twins: Twins, kernels: str) -> None:
    """Without the collector of cycles, which looks at nothing that a node has loaded."""
    cluster = opened(twins.old, kernels)
    old = [
        *(weakref.ref(node._model.half) for node in cluster.attention),
        *(weakref.ref(layer) for node in cluster.experts for layer in node._model._layers.values()),
    ]
    cluster.enter(renewed(cluster.membership), switches=cluster.switches_to(twins.new))
    assert [ref() for ref in old] == [None] * len(old)


def test_what_experts_have_served_is_counted_on(twins: Twins) -> None:
    cluster = opened(twins.old)
    begin(cluster, prompts_of(4, LENGTHS))
    before = [node.counters()["expert_tokens"] for node in cluster.experts]
    cluster.enter(renewed(cluster.membership), switches=cluster.switches_to(twins.new))
    assert [node.counters()["expert_tokens"] for node in cluster.experts] == before
