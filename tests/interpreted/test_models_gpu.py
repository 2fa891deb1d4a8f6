"""Whole models on the GPU's kernels, interpreted: their tokens are transformers'."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megainfer.compute.backend import Backend
from megainfer.compute.gpu.backend import GpuBackend
from tests.support.checkpoints import VARIANTS, decisive, oracle, write_checkpoint
from tests.support.local_cluster import LocalCluster, greedy_submit

TWO_LAYERS = {"num_hidden_layers": 2}
# Between them they launch every kernel.
FAMILIES: Mapping[tuple[str, str], dict[str, Any]] = {
    ("qwen3_moe", "gqa"): TWO_LAYERS,
    ("gpt_oss", "alternating"): TWO_LAYERS,  # sinks, windows, biases, gates that are clamped
    ("deepseek_v32", "nine_positions"): TWO_LAYERS,  # positions chosen, groups of experts, latents
    ("qwen3_next", "wide_tied"): {},  # recurrent states, gated attention, a gated shared expert
    ("llama4_text", "maverick"): TWO_LAYERS,  # chunks, temperature, weights on the input, dense
}
NEW_TOKENS = 4
LENGTHS = (3, 14)
SECONDS = 110  # less than a test may take: the interpreter needs long


class GpuCluster(LocalCluster):
    """Nodes whose kernels are interpreted, on the host."""

    def _backend(self) -> Backend:
        return GpuBackend(torch.float32, torch.float32)


def prompts_of(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(160, (length,), generator=generator).tolist() for length in LENGTHS]


def served(folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """One prompt in chunks beside the other's tokens, over two expert nodes."""
    options = {"max_model_len": 48, "max_num_batched_tokens": 12, "dtype": "float32"}
    cluster = GpuCluster(folder, 1, 1, 2, kernels="reference", **options)
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
    prompts, expected = decisive(oracle(folder), prompts_of, NEW_TOKENS)
    assert served(folder, prompts) == [greedy.tokens for greedy in expected]
