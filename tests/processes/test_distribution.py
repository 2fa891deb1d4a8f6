"""Real processes over shared memory: any number of nodes gives the oracle's tokens."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from megainfer import LLM, SamplingParams
from megainfer.frontend.sequence_request import SequenceRequest
from megainfer.models.registry import load_spec
from tests.support.checkpoints import (
    FAMILIES,
    Greedy,
    assert_same_greedy,
    decisive,
    oracle,
    write_checkpoint,
)
from tests.support.prompts import LENGTHS, VOCABULARY, prompts_of

NEW_TOKENS = 36
# Each pair of node counts, and each m; all of them together are slow.
QUICK_SHAPES = {(1, 1, 3), (1, 2, 4), (2, 1, 1), (2, 3, 2), (3, 2, 3), (4, 4, 1)}
NODES = [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (4, 4)]
SHAPES = [
    pytest.param(*nodes, m, marks=() if (*nodes, m) in QUICK_SHAPES else pytest.mark.slow)
    for nodes in NODES
    for m in (1, 2, 3, 4)
]
BLOCKS = 8
MAX_LEN = 128


# One of each kind of attention and of experts.
QUICK = {"qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama", "qwen3_next"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Path, list[list[int]], list[Greedy]]:
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("model"))
    return folder, *decisive(oracle(folder), prompts_of, NEW_TOKENS)


def small_cache(folder: Path) -> dict[str, int]:
    """Fewer blocks and places than the requests would like, so that they wait and give way."""
    per_block = 16 * load_spec(folder).kv_bytes_per_token(4)
    return {
        "max_model_len": MAX_LEN,
        "kv_cache_memory": BLOCKS * per_block,
        "max_num_seqs": 5,
        "max_num_batched_tokens": 32,
    }


def params(tokens: int = NEW_TOKENS, **more) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **more)


async def abort_after(llm: LLM, request_id: str, prompt: list[int], tokens: int) -> list[int]:
    """Start a long request and hang up after some of its tokens, which are returned."""
    got: list[int] = []
    request = SequenceRequest(request_id, prompt, params(MAX_LEN - len(prompt)))
    with llm.engine.submit([request]) as stream:
        async for event in stream:
            got += event.token_ids
            if len(got) >= tokens:
                break
    return got


async def abort_many(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    short = [prompt for prompt in prompts if len(prompt) < 60]
    aborts = (abort_after(llm, f"doomed-{i}", p, i + 1) for i, p in enumerate(short))
    return await asyncio.gather(*aborts)


def at_rest(llm: LLM) -> bool:
    nodes = [c for name, c in llm.stats().items() if name.startswith("attention")]
    return all(n["running"] == n["waiting"] == n["steps_in_flight"] == 0 for n in nodes)


@pytest.mark.parametrize(("num_attention", "num_expert", "m"), SHAPES)
def test_tokens_equal_the_oracles(reference, num_attention, num_expert, m):
    folder, prompts, expected = reference
    with LLM(
        str(folder),
        attn_gpus=num_attention,
        ffn_gpus=num_expert,
        micro_batches=m,
        **small_cache(folder),
    ) as llm:
        doomed = asyncio.run_coroutine_threadsafe(abort_many(llm, prompts), llm.loop)
        results = llm.generate([*prompts, *prompts], params(), progress=False)
        cut = doomed.result(timeout=60)
        stats = llm.stats()
        assert llm.micro_batches == m
        assert at_rest(llm)
    tokens = [result.outputs[0].token_ids for result in results]
    assert_same_greedy([*expected, *expected], tokens)
    starts = [want for want, prompt in zip(expected, prompts, strict=True) if len(prompt) < 60]
    for got, want in zip(cut, starts, strict=True):
        assert got == want.tokens[: len(got)]
    attention = [c for name, c in stats.items() if name.startswith("attention")]
    assert sum(c["preemptions"] for c in attention) > 0
    assert sum(c["prefix_hit_tokens"] for c in attention) > 0
    assert all(c["free_blocks"] == BLOCKS for c in attention)


def by_weight(families: Mapping[str, Mapping[str, object]]) -> list[Any]:
    """The first shape of each; the slow ones are those that nothing in a process treats apart."""
    return [
        pytest.param(family, next(iter(shapes)), marks=() if family in QUICK else pytest.mark.slow)
        for family, shapes in families.items()
    ]


@pytest.mark.parametrize(("family", "variant"), by_weight(FAMILIES))
def test_every_family_through_processes(family, variant, tmp_path):
    folder = write_checkpoint(family, variant, tmp_path)
    prompts, expected = decisive(oracle(folder), lambda seed: prompts_of(seed, LENGTHS[:6]), 10)
    nodes = min(2, load_spec(folder).num_experts)  # a dense model has one
    with LLM(str(folder), attn_gpus=1, ffn_gpus=nodes, micro_batches=2) as llm:
        results = llm.generate(prompts, params(10, logprobs=-1), progress=False)
    assert_same_greedy(expected, [result.outputs[0].token_ids for result in results])
    for result, want in zip(results, expected, strict=True):
        rows = [
            [row[token].logprob for token in range(VOCABULARY)]
            for row in result.outputs[0].logprobs
        ]
        torch.testing.assert_close(
            torch.tensor(rows), want.logits.log_softmax(-1), atol=2e-4, rtol=1e-4
        )


def test_automatic_m_and_bfloat16_and_colocated(reference):
    """The choices that need no oracle of their own still answer, and colocated is equal."""
    folder, prompts, expected = reference
    with LLM(str(folder), colocated=True) as llm:
        results = llm.generate(prompts, params(), progress=False)
        assert llm.micro_batches == 1
    assert_same_greedy(expected, [result.outputs[0].token_ids for result in results])
    with LLM(str(folder), dtype="bfloat16", micro_batches="auto", cores="split") as llm:
        results = llm.generate(prompts, params(), progress=False)
        assert 1 <= llm.micro_batches <= 8
    assert all(len(result.outputs[0].token_ids) == NEW_TOKENS for result in results)
