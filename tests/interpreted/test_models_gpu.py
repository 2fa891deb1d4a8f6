"""Whole models on the GPU's kernels, interpreted: their tokens are transformers'."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from megainfer.models.registry import load_spec
from tests.support.checkpoints import VARIANTS, decisive, oracle, write_checkpoint
from tests.support.gpu_cluster import SECONDS, GpuCluster, short_prompts
from tests.support.local_cluster import greedy_submit

TWO_LAYERS = {"num_hidden_layers": 2}
# Between them they launch every kernel, as test_models_twin.py has it.
FAMILIES: Mapping[tuple[str, str], dict[str, Any]] = {
    ("qwen3_moe", "gqa"): TWO_LAYERS,
    ("gpt_oss", "alternating"): TWO_LAYERS,  # sinks, windows, biases, gates that are clamped
    ("deepseek_v32", "nine_positions"): TWO_LAYERS,  # positions chosen, groups of experts, latents
    ("qwen3_next", "wide_tied"): {},  # recurrent states, gated attention, a gated shared expert
    ("llama4_text", "maverick"): TWO_LAYERS,  # chunks, temperature, weights on the input, dense
}
NEW_TOKENS = 4


def served(folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """One prompt in chunks beside the other's tokens, over two expert nodes where there can be."""
    options = {"max_model_len": 48, "max_num_batched_tokens": 12, "dtype": "float32"}
    nodes = min(2, load_spec(folder).num_experts)
    cluster = GpuCluster(folder, 1, 1, nodes, kernels="reference", **options)
    for i, prompt in enumerate(prompts):
        cluster.submit(0, greedy_submit(str(i), prompt, NEW_TOKENS))
    cluster.drain(SECONDS)
    assert not [answer.failure for answer in cluster.answers.values() if answer.failure]
    return [cluster.answers[str(i)].tokens for i in range(len(prompts))]


@pytest.mark.parametrize(
    "family",
    [*FAMILIES, *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v not in FAMILIES)],
    ids="-".join,
)
def test_tokens_are_those_of_transformers(tmp_path, family):
    folder = write_checkpoint(*family, tmp_path, **FAMILIES.get(family, {}))
    prompts, expected = decisive(oracle(folder), short_prompts, NEW_TOKENS)
    assert served(folder, prompts) == [greedy.tokens for greedy in expected]
