"""What tokens leave of latent attention, interpreted, against the reference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.gpu.kernels.attention.latents import LatentFactors, keep_latents
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST
from megainfer.models.spec import IndexerSpec, MlaSpec
from tests.support.kernel_latent import shape

PLAIN = shape(3, 20, 10, 6, 14)
SHAPES = {
    "queries_at_once": PLAIN,
    "query_latent": replace(PLAIN, q_lora_rank=33),
    "indexed": replace(PLAIN, q_lora_rank=18, indexer=IndexerSpec(2, 14, 9, eps=1e-5)),
    "wide": replace(PLAIN, kv_lora_rank=128, rope_dim=16, q_lora_rank=100),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def step() -> StepBatch:
    chunks = [ChunkInput([0], 17, [4, 1], True), ChunkInput([0] * 4, 14, [3, 0], True)]
    return build_batch(chunks, block_size=16)


def factors_of(spec: MlaSpec, dtype: torch.dtype) -> LatentFactors:
    def vector(size: int | None) -> Tensor | None:
        return None if size is None else (1 + 0.3 * torch.randn(size)).to(dtype)

    norm = vector(spec.kv_lora_rank)
    assert norm is not None
    index_dim = spec.indexer.head_dim if spec.indexer else None
    rotary = reference.rotary_table(spec.rope, spec.rope_dim, 40, dtype)
    return LatentFactors(
        norm, rotary, vector(spec.q_lora_rank), vector(index_dim), vector(index_dim)
    )


def caches_of(spec: MlaSpec, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(torch.full((5, 16, *size), torch.nan).to(dtype) for size in spec.cache_shapes)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_latents_and_keys_are_the_references(spec, dtype):
    batch, factors, caches = step(), factors_of(spec, dtype), caches_of(spec, dtype)
    index, q_rank = spec.indexer.head_dim if spec.indexer else 0, spec.q_lora_rank or 0
    sizes = [spec.kv_lora_rank, spec.rope_dim, q_rank, index]
    down = torch.randn(batch.num_tokens, sum(sizes)).to(dtype)
    q = keep_latents(HOST, down, spec, factors, batch, caches)
    latent, key, q_latent, index_key = down.split_with_sizes(sizes, -1)
    turns, exact = factors.rotary[batch.positions], TOLERANCE[dtype]

    def kept(cache: Tensor) -> Tensor:
        """What is written where the batch says, which is all that is."""
        flat = cache.flatten(0, 1).clone()
        rows = flat[batch.kept_at].clone()
        flat[batch.kept_at] = torch.nan
        assert flat.isnan().all()
        return rows

    normed = reference.rms_norm(latent, factors.kv_norm, spec.latent_eps)
    rotated = reference.rotate(key[:, None], turns)[:, 0]
    expected = torch.cat((normed, rotated), -1)
    torch.testing.assert_close(kept(caches[0]), expected, atol=exact, rtol=exact)
    assert q.shape == q_latent.shape
    if factors.q_norm is not None:
        expected = reference.rms_norm(q_latent, factors.q_norm, spec.latent_eps)
        torch.testing.assert_close(q, expected, atol=exact, rtol=exact)
    if spec.indexer is not None:
        normed = layer_norm(
            index_key, (index,), factors.index_norm, factors.index_bias, spec.indexer.eps
        )
        expected = reference.rotate(normed[:, None], turns)[:, 0]
        torch.testing.assert_close(kept(caches[1]), expected, atol=exact, rtol=exact)


def test_a_padding_row_is_kept_nowhere():
    spec, batch = SHAPES["indexed"], step()
    batch.positions.fill_(-1)
    batch.kept_at.fill_(-1)
    caches = caches_of(spec, torch.float32)
    down = torch.randn(batch.num_tokens, 20 + 6 + 18 + 14)
    keep_latents(HOST, down, spec, factors_of(spec, torch.float32), batch, caches)
    assert all(cache.isnan().all() for cache in caches)
