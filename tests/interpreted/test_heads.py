"""What becomes of projected heads, interpreted, against the reference."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.gpu.kernels.attention.heads import HeadFactors, place_heads
from megainfer.compute.reference.attention import Attention
from megainfer.compute.reference.kernels import write_cache
from megainfer.compute.rotary import rotary_of, rotary_tables
from megainfer.device import HOST
from megainfer.models.sources import AttentionSources
from megainfer.models.spec import AttentionSpec, QkNorm, QueryTemperature, RopeSpec
from tests.support.kernel_attention import EPS, POSITIONS, ROPE, RandomWeights, Shape, batch_of

PAIRS = RopeSpec(1e4, interleaved=True)
SPECS = {
    "plain": AttentionSpec(4, 2, 16, ROPE),
    "no_positions": AttentionSpec(3, 1, 20, None),
    "many_heads": AttentionSpec(40, 20, 60, ROPE, qk_norm=QkNorm.HEAD),
    "head_norm": AttentionSpec(6, 2, 16, ROPE, qk_norm=QkNorm.HEAD),
    "unit_norm": AttentionSpec(6, 2, 16, ROPE, qk_norm=QkNorm.UNIT),
    "full_norm": AttentionSpec(5, 1, 24, ROPE, qk_norm=QkNorm.FULL, clip_qkv=0.9),
    "head_after": AttentionSpec(4, 2, 16, ROPE, qk_norm=QkNorm.HEAD, norm_after_rope=True),
    "unit_after": AttentionSpec(4, 2, 16, PAIRS, qk_norm=QkNorm.UNIT, norm_after_rope=True),
    "none_after": AttentionSpec(4, 2, 16, PAIRS, norm_after_rope=True),
    "clip": AttentionSpec(3, 3, 20, ROPE, qk_norm=QkNorm.HEAD, clip_qkv=0.7),
    "partial": AttentionSpec(4, 2, 20, RopeSpec(1e4, rotated=6), qk_norm=QkNorm.HEAD),
    "partial_pairs": AttentionSpec(4, 2, 20, RopeSpec(1e4, rotated=14, interleaved=True)),
    "temperature": AttentionSpec(4, 2, 16, None, temperature=QueryTemperature(9, 0.7)),
    "gated": AttentionSpec(4, 2, 20, RopeSpec(1e4, rotated=8), qk_norm=QkNorm.HEAD, gated=True),
}
CHUNKS = [(0, 1), (17, 1), (0, 3), (26, 2)]


class Case:
    """The reference of one layer and what a kernel takes of it."""

    def __init__(self, spec: AttentionSpec, dtype: torch.dtype) -> None:
        model = replace(Shape(24, spec).model(), dtype=str(dtype))
        rotary = rotary_of(spec, rotary_tables(model, POSITIONS, dtype))
        reader = cast(WeightReader, RandomWeights(3))
        sources = AttentionSources(model, 0)
        self.reference = Attention(sources, reader, rotary, dtype)
        norms = [
            reader.load(pieces, dtype) if pieces else None
            for pieces in (sources.q_norm(), sources.k_norm())
        ]
        self.factors = HeadFactors(*norms, rotary)
        self._weight = reader.load(sources.qkv(), dtype)
        self._norm = self.reference._norm

    def qkv(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(self._norm(x), self._weight)


def poisoned(batch: StepBatch, blocks: int, spec: AttentionSpec, dtype: torch.dtype) -> Tensor:
    size = (2, blocks, batch.block_size, spec.num_kv_heads, spec.head_dim)
    return torch.full(size, torch.nan, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_heads_are_the_references(spec, dtype):
    case, (batch, blocks) = Case(spec, dtype), batch_of(CHUNKS)
    x = torch.randn(batch.num_tokens, 24).to(dtype)
    expected = case.reference.project(x, batch.positions)
    kept, wanted = (poisoned(batch, blocks, spec, dtype) for _ in range(2))
    q = place_heads(HOST, case.qkv(x), spec, EPS, case.factors, batch, (kept[0], kept[1]))
    for cache, part in zip(wanted, (expected.k, expected.v), strict=True):
        write_cache(cache, part, batch.kept_at)
    for ours, its in ((q, expected.q), (kept.nan_to_num(), wanted.nan_to_num())):
        close = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(ours, its, rtol=close, atol=close)
        # It is rounded at the same places: what differs does so because a norm's sum did.
        assert dtype is torch.float32 or float((ours != its).float().mean()) < 1e-3
    assert torch.equal(kept.isnan(), wanted.isnan())


def test_a_row_without_a_place_keeps_nothing():
    spec = SPECS["plain"]
    case, (batch, blocks) = Case(spec, torch.float32), batch_of(CHUNKS)
    kept_at = torch.where(torch.arange(batch.num_tokens) < 3, batch.kept_at, -1)
    cache = poisoned(batch, blocks, spec, torch.float32)
    qkv = case.qkv(torch.randn(batch.num_tokens, 24))
    padded = replace(batch, kept_at=kept_at)
    place_heads(HOST, qkv, spec, EPS, case.factors, padded, (cache[0], cache[1]))
    rows = cache.flatten(1, 2).isfinite().flatten(2).any(-1).nonzero()[:, 1]
    assert sorted(rows.tolist()) == sorted(kept_at[:3].tolist() * 2)


def test_no_rows_are_no_launch():
    spec = SPECS["plain"]
    batch, blocks = batch_of([(0, 1)])
    cache = poisoned(batch, blocks, spec, torch.float32)
    qkv, factors = torch.empty(0, 8 * 16), Case(spec, torch.float32).factors
    q = place_heads(HOST, qkv, spec, EPS, factors, batch, (cache[0], cache[1]))
    assert q.shape == (0, 4, 16)
    assert cache.isnan().all()
