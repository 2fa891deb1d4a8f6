"""What nodes do with requests, on the GPU's kernels, interpreted: a cache is too small, prompts
begin alike, requests are aborted, steps are taken back, and all that is wished of tokens is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from msgspec.structs import replace as with_wishes

from megainfer.messages.requests import Abort
from megainfer.models.registry import load_spec
from tests.support.canaries import fill_unused
from tests.support.checkpoints import decisive, oracle, write_checkpoint
from tests.support.gpu_cluster import SECONDS, GpuCluster, short_prompts
from tests.support.local_cluster import Answer, LocalCluster, greedy_submit

NEW_TOKENS = (8, 8, 2)
BLOCKS = 3
"""Of 16 tokens: the second sequence takes the last, and loses it when the first one needs it."""
LENGTHS = (10, 15, 18)
TAKEN_BACK = 6
"""Tokens of an answer whose steps are taken back."""
WISHES: Sequence[dict[str, Any]] = (
    {"logprobs": 2, "prompt_logprobs": 1},
    {},
    {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "logit_bias": {5: 1.0},
        "bad_words": [[9]],
    },
)
OPTIONS: dict[str, Any] = {"kernels": "reference", "dtype": "float32", "max_num_batched_tokens": 12}


def crowded(cluster: LocalCluster, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    """Answers to all prompts, and to the longest one when it is asked for again."""
    free = cluster.free_blocks()
    *others, last = (
        with_wishes(greedy_submit(str(i), prompt, NEW_TOKENS[i]), **WISHES[i])
        for i, prompt in enumerate(prompts)
    )
    for submit in (*others, greedy_submit("doomed", prompts[1][1:], 30), last):
        cluster.submit(0, submit)
    while not cluster.answers["doomed"].tokens:
        cluster.turn()
    (node,) = cluster.attention
    assert node.scheduler.steps_in_flight
    node.hear(Abort("doomed"))
    cluster.drain(SECONDS)
    assert node.scheduler.counters()["preemptions"] > 0
    assert len(cluster.answers["doomed"].tokens) < 30
    cluster.submit(0, greedy_submit("again", prompts[2], 1))
    cluster.drain(SECONDS)
    assert cluster.answers["again"].cached_tokens == 16
    assert cluster.free_blocks() == free
    return [cluster.answers[name] for name in ("0", "1", "2", "again")]


@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_crowd_is_served_as_by_the_reference(tmp_path, layers):
    """What requests meet is the same however many layers there are."""
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path, num_hidden_layers=layers)
    prompts, greedy = decisive(oracle(folder), lambda s: short_prompts(s, LENGTHS), max(NEW_TOKENS))
    room = BLOCKS * 16 * load_spec(folder).kv_bytes_per_token(4)
    found, expected = (
        crowded(kind(folder, 1, 1, 2, max_model_len=48, kv_cache_memory=room, **OPTIONS), prompts)
        for kind in (GpuCluster, LocalCluster)
    )
    assert found[0].tokens == greedy[0].tokens
    assert found[1].tokens == greedy[1].tokens[: NEW_TOKENS[1]]
    for own, other in zip(found, expected, strict=True):
        assert own.failure is None
        assert own.tokens == other.tokens
        scores, references = (
            [*answer.logprobs, *(answer.prompt_logprobs or ())] for answer in (own, other)
        )
        for score, reference in zip(scores, references, strict=True):
            assert score.rank == reference.rank
            assert score.values == pytest.approx(reference.values, abs=1e-4)


def serve(cluster: LocalCluster, until: Callable[[], bool]) -> None:
    """Before each turn all memory without a user is filled with NaN."""
    while not until():
        for node in cluster.attention:
            fill_unused(node, torch.nan)
        cluster.turn()


def test_steps_are_taken_back_and_recurrent_states_begin_again(tmp_path):
    """Twice: when somebody has a token, and when the other attention node is gone."""
    folder = write_checkpoint("qwen3_next", "odd_dense_last", tmp_path)
    prompts, expected = decisive(oracle(folder), short_prompts, TAKEN_BACK)
    cluster = GpuCluster(folder, 1, 2, 1, prefix_cache=False, max_num_seqs=2, **OPTIONS)
    for i in range(2):
        cluster.submit(i, greedy_submit(str(i), prompts[1], TAKEN_BACK))
    answer, other = (cluster.answers[str(i)] for i in range(2))
    serve(cluster, lambda: len(answer.tokens) > 1)
    was = cluster.membership
    assert cluster.attention[0].scheduler.steps_in_flight, "that are taken back"
    cluster.enter(replace(was, epoch=was.epoch + 1))
    serve(cluster, lambda: len(answer.tokens) > 3)
    assert len(other.tokens) < TAKEN_BACK
    cluster.enter(cluster.membership.without_attention(1))
    serve(cluster, lambda: answer.finish_reason is not None)
    assert answer.tokens == expected[1].tokens
