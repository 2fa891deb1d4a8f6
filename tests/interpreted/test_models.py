"""Whole small models, interpreted, against the reference: prompts in chunks among decodes."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from megainfer.compute.batch import ChunkInput
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.reference.backend import ReferenceBackend
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import Pair, blocks_of, open_pair

FLOAT32 = (torch.float32, torch.float32)
# In test_models_gpu.py there are tokens of those that are slow here.
SLOW = [
    ("qwen3_moe", "gqa"),  # norms of heads
    ("gpt_oss", "alternating"),  # sinks, windows, biases
    ("llama4_text", "scout"),  # chunks, pairs of channels, norms after the rotation, temperature
    ("qwen3_next", "grouped"),  # gated, partly rotated; recurrent states
]
FAMILIES = [
    *(pytest.param(family, marks=pytest.mark.slow, id="-".join(family)) for family in SLOW),
    ("olmoe", "gqa_clip_tied"),  # norms of all heads, clipped
    ("dbrx", "gqa_clip"),  # layer norms
    ("gpt_oss", "mqa_odd"),
    ("qwen2_moe", "dense_between"),
    ("qwen3_next", "odd_dense_last"),
    ("deepseek_v2", "lite"),  # no latent of queries
    ("deepseek_v3", "groups"),
    ("deepseek_v32", "nine_positions"),  # chosen by an indexer
]


def steps() -> Iterator[Sequence[ChunkInput]]:
    """Sequences that begin, and go on by one token or by several."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(150, (3, 20), generator=generator).tolist()
    done = [0] * 3
    for lengths in ((11, 1, 0), (1, 2, 4)):
        chunks = []
        for i, length in enumerate(lengths):
            new = tokens[i][done[i] : done[i] + length]
            chunks.append(ChunkInput(new, done[i], blocks_of(i), True, i))
            done[i] += length
        yield [chunk for chunk in chunks if chunk.token_ids]


def logits_of(pair: Pair) -> Tensor:
    return torch.cat([pair.step(chunks) for chunks in steps()])


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_logits_equal_the_references(tmp_path, family):
    folder = write_checkpoint(*family, tmp_path)
    gpu, reference = (
        logits_of(open_pair(folder, 2, kind(*FLOAT32))) for kind in (GpuBackend, ReferenceBackend)
    )
    torch.testing.assert_close(gpu, reference, atol=1e-4, rtol=1e-4)


def test_bfloat16_is_as_close_as_the_reference_in_bfloat16(tmp_path):
    folder = write_checkpoint("gpt_oss", "alternating", tmp_path)
    exact, rounded, ours = (
        logits_of(open_pair(folder, 2, kind(dtype, dtype)))
        for kind, dtype in (
            (ReferenceBackend, torch.float32),
            (ReferenceBackend, torch.bfloat16),
            (GpuBackend, torch.bfloat16),
        )
    )
    assert 0 < (ours - exact).std() < 1.5 * (rounded - exact).std()
