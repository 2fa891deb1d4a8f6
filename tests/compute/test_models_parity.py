"""Both halves of every family together give what transformers gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megainfer.compute.batch import ChunkInput
from megainfer.compute.selection import Precision
from megainfer.models.registry import load_spec
from megainfer.topology import placement_of
from tests.support.checkpoints import (
    VARIANTS,
    Greedy,
    assert_same_greedy,
    greedy,
    oracle,
    write_checkpoint,
)
from tests.support.generated import NEW_TOKENS, generate, prompts_of
from tests.support.kernel_names import KERNELS
from tests.support.node_pair import blocks_of, load_pair


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory) -> tuple[Path, list[list[int]], list[Greedy]]:
    """A variant's folder, prompts, and the oracle's answers."""
    family, variant = request.param
    folder = write_checkpoint(family, variant, tmp_path_factory.mktemp(f"{family}_{variant}"))
    prompts = prompts_of(load_spec(folder).vocab_size)
    return folder, prompts, greedy(oracle(folder), prompts, NEW_TOKENS)


every_variant = pytest.mark.parametrize(
    "reference", VARIANTS, indirect=True, ids=lambda pair: "-".join(pair), scope="module"
)


@every_variant
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("num_nodes", "chunk"), [(1, 100), (3, 7)])
def test_logits_and_greedy_tokens_equal_transformers(reference, num_nodes, chunk, kernels):
    folder, prompts, expected = reference
    num_nodes = min(num_nodes, load_spec(folder).num_experts)  # a dense model has one
    actual = generate(load_pair(folder, num_nodes, kernels=kernels), prompts, chunk)
    assert_same_greedy(expected, [sequence.tokens for sequence in actual])
    for want, got in zip(expected, actual, strict=True):
        torch.testing.assert_close(got.logits, want.logits, atol=2e-4, rtol=1e-4)


@every_variant
def test_a_token_sent_to_a_wrong_expert_would_not_go_unnoticed(reference):
    folder, prompts, expected = reference
    spec = load_spec(folder)
    num_experts = spec.num_experts
    if num_experts == 1:
        pytest.skip("a dense model's only expert can't be the wrong one")
    dealt = placement_of(
        2, dict.fromkeys(spec.moe_layers, tuple((expert % 2,) for expert in range(num_experts)))
    )
    pair = load_pair(folder, 2, believed=dealt)
    actual = generate(pair, prompts, 100)
    assert all(got.tokens != want.tokens for got, want in zip(actual, expected, strict=True))


@pytest.mark.parametrize("kernels", KERNELS)
def test_bfloat16_is_as_close_as_transformers_in_bfloat16(tmp_path, kernels):
    folder = write_checkpoint("qwen2_moe", "gqa", tmp_path)
    prompts = [prompt[:12] for prompt in prompts_of(160)]
    exact, rounded = (
        torch.stack([last_logits(oracle(folder, dtype), prompt) for prompt in prompts])
        for dtype in (torch.float32, torch.bfloat16)
    )
    pair = load_pair(folder, 2, Precision("bfloat16"), kernels)
    ours = pair.step([ChunkInput(p, 0, blocks_of(i), True) for i, p in enumerate(prompts)])
    assert ours.dtype == torch.float32
    ours_error, their_error = (ours - exact).std(), (rounded - exact).std()
    assert 0 < ours_error < 1.5 * their_error


@torch.inference_mode()
def last_logits(model: Any, prompt: list[int]) -> Tensor:
    return model(torch.tensor([prompt])).logits[0, -1].float()


def test_a_step_that_samples_nothing_gives_no_logits(tmp_path):
    pair = load_pair(write_checkpoint("mixtral", "gqa", tmp_path), 1)
    logits = pair.step([ChunkInput([3, 4, 5], 0, blocks_of(0), samples=False)])
    assert logits.shape == (0, 160)


def test_expert_tokens_are_counted_by_layer_and_expert(tmp_path):
    pair = load_pair(write_checkpoint("qwen3_moe", "dense_between", tmp_path), 3)
    pair.step([ChunkInput(list(range(9)), 0, blocks_of(0), samples=True)])
    counts = [node.counters()["expert_tokens"] for node in pair.experts]
    held = ([0, 1, 2], [3, 4, 5], [6, 7])
    assert [[list(layer) for layer in node] for node in counts] == [[own, own] for own in held]
    for layer in range(2):
        assert sum(sum(node[layer].values()) for node in counts) == 9 * 2


def answer(tokens: list[int], gaps: list[float]) -> Greedy:
    return Greedy(tokens, gaps, torch.empty(0))


def test_comparison_ends_where_the_oracle_is_undecided():
    certain = [answer([1, 2, 3], [0.1] * 3)] * 199
    expected = [*certain, answer([1, 2, 3], [0.1, 1e-5, 0.1])]
    same = [[1, 2, 3]] * 199
    assert_same_greedy(expected, [*same, [1, 9, 9]])
    with pytest.raises(AssertionError, match="sequence 199 differs"):
        assert_same_greedy(expected, [*same, [9, 2, 3]])
    with pytest.raises(AssertionError, match="sequence 0 differs"):
        assert_same_greedy(expected, [[1, 2, 4], *same])
    with pytest.raises(AssertionError, match="sequence 1 has 2 tokens"):
        assert_same_greedy(expected, [[1, 2, 3], [1, 2], *same[1:]])
    with pytest.raises(AssertionError, match="ended undecided"):
        assert_same_greedy(expected[150:], [*same[150:], [1, 2, 3]])
