"""A request that goes on at another node, from the tokens that the first one made of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from megainfer.messages.requests import FinishReason, Submit
from megainfer.structured import grammar as grammars
from tests.support.checkpoints import write_checkpoint
from tests.support.kernel_experts import levels
from tests.support.local_cluster import Answer, LocalCluster, greedy_submit, prompts_of
from tests.support.scripted_server import write_tokenizer

EOS = 2
NEW_TOKENS = 40
MOMENTS = (0, 1, 40, 120, 200)
"""Tokens made in all before the node is lost: none, the first, more, and so that some ended."""
WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 3},
    "seeded": {"temperature": 1.0, "seed": 2**63 - 1, "logprobs": 0, "top_p": 0.9, "top_k": 50},
    "penalised": {
        "frequency_penalty": 0.7,
        "presence_penalty": 0.4,
        "repetition_penalty": 1.3,
        "temperature": 0.9,
        "seed": 7,
        "logprobs": 2,
    },
    "short": {"stop_token_ids": list(range(0, 400, 3)), "min_tokens": 11, "logit_bias": {5: 1.0}},
    "words": {"bad_words": [[7], [9, 11]], "allowed_token_ids": list(range(5, 25)), "min_p": 0.01},
    "scored": {"prompt_logprobs": 2, "logprobs": 1},
    "shaped": {
        "grammar": grammars.regex(r"(\d{3}-){4}[a-f]{2,5}", "regex"),
        "temperature": 1.0,
        "stop_token_ids": [EOS],
        "seed": 3,
        "logprobs": 1,
    },
    "thinking": {
        "grammar": msgspec.structs.replace(grammars.regex(r"[a-f]{4,30}", "regex"), after=9),
        "stop_token_ids": [EOS],
        "temperature": 1.0,
        "seed": 5,
        "logit_bias": {9: 4.0},
    },
}
FAMILIES = [("qwen3_moe", "gqa"), ("deepseek_v2", "yarn_groups"), ("qwen3_next", "grouped")]
"""Attention of both kinds, and recurrent states."""

pytestmark = pytest.mark.skipif(not levels(), reason="no C++ kernels here")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    write_checkpoint(*request.param, folder, vocab_size=400)
    return write_tokenizer(folder)


@pytest.fixture(scope="module")
def undisturbed(folder) -> dict[str, Answer]:
    cluster = opened(folder)
    for submit in submits():
        cluster.submit(0, submit)
    finish(cluster)
    return cluster.answers


def submits() -> list[Submit]:
    lengths = (5, 17, 40, 33, 9, 48, 20, 12)
    prompts = prompts_of(3, lengths)
    return [
        msgspec.structs.replace(greedy_submit(name, prompt, NEW_TOKENS), **wishes)
        for (name, wishes), prompt in zip(WISHES.items(), prompts, strict=True)
    ]


def opened(folder: Path) -> LocalCluster:
    return LocalCluster(folder, 2, 3, 2, kernels="cpu", max_num_batched_tokens=24)


def begun(folder: Path, tokens: int) -> LocalCluster:
    """Requests are at node 0, which has made at least so many tokens of them."""
    cluster = opened(folder)
    for submit in submits():
        cluster.submit(0, submit)
    run(cluster, tokens)
    return cluster


def run(cluster: LocalCluster, tokens: int) -> None:
    while sum(len(answer.tokens) for answer in cluster.answers.values()) < tokens:
        cluster.turn()


def finish(cluster: LocalCluster) -> None:
    """Until every answer has ended; grammars are compiled on a thread meanwhile."""
    while any(a.finish_reason is None and a.failure is None for a in cluster.answers.values()):
        cluster.turn()
    cluster.check_integrity()


def lose(cluster: LocalCluster, node: int, to: int) -> None:
    """`node` is never heard of again, and `to` gets its requests."""
    cluster.enter(cluster.membership.without_attention(node))
    for submit in submits():
        answer = cluster.answers[submit.request_id]
        if answer.finish_reason is None:
            output = list(answer.tokens)
            cluster.attention[to].hear(msgspec.structs.replace(submit, output=output))


@pytest.mark.parametrize("tokens", MOMENTS)
def test_it_goes_on_bit_for_bit(folder, undisturbed, tokens):
    cluster = begun(folder, tokens)
    lose(cluster, 0, to=1)
    finish(cluster)
    for name, answer in cluster.answers.items():
        assert answer == undisturbed[name], name


def test_so_it_does_after_a_second_loss(folder, undisturbed):
    cluster = begun(folder, 30)
    lose(cluster, 0, to=1)
    run(cluster, 90)
    lose(cluster, 1, to=2)
    finish(cluster)
    assert cluster.answers == undisturbed


def test_what_is_compared_has_what_it_is_named_for(undisturbed):
    assert {a.failure for a in undisturbed.values()} == {None}
    ends = {name: answer.finish_reason for name, answer in undisturbed.items()}
    assert {ends["short"], ends["shaped"]} == {FinishReason.STOP}
    assert ends["greedy"] is FinishReason.LENGTH
    assert 9 in undisturbed["thinking"].tokens
    assert undisturbed["scored"].prompt_logprobs is not None


def test_a_complete_answer_is_not_begun_again(folder):
    cluster = opened(folder)
    cluster.submit(0, msgspec.structs.replace(greedy_submit("a", [1], 3), output=[4, 5, 6]))
    cluster.submit(0, msgspec.structs.replace(greedy_submit("b", [1], 3), output=[400]))
    assert "3 tokens were made of the answer already" in str(cluster.answers["a"].failure)
    assert "output: token id 400 is not in the vocabulary" in str(cluster.answers["b"].failure)
