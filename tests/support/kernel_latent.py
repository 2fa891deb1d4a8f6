"""One layer of latent attention with random weights: in C++, and the reference it is held to."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.cpu import latent as cpu_latent
from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.compute.cpu.kernels.attention_layer import BLOCK_TOKENS
from megainfer.compute.cpu.kernels.threads import Threads
from megainfer.compute.cpu.loader import Loader
from megainfer.compute.half import HalfSource
from megainfer.compute.reference import kernels as reference
from megainfer.compute.reference import latent as reference_latent
from megainfer.device import HOST
from megainfer.models.names import TensorNames
from megainfer.models.sources import LatentSources
from megainfer.models.spec import (
    ExpertSpec,
    LayerSpec,
    MlaSpec,
    ModelSpec,
    MoESpec,
    NormSpec,
    RopeSpec,
    RouterSpec,
)
from megainfer.models.spec.cache import LATENT_GROUP
from megainfer.models.stored import Pieces
from megainfer.topology import contiguous_placement
from tests.support.cache_codes import Codes, quantised

POSITIONS = 300


def shape(heads: int, rank: int, nope: int, rope: int, value: int, **axes: Any) -> MlaSpec:
    spec = MlaSpec(heads, rank, None, nope, rope, value, RopeSpec(1e4), scale=0.8 / nope**0.5)
    return replace(spec, **axes)


class RandomWeights:
    """What a checkpoint's reader would give, drawn for each tensor by its name."""

    device = HOST

    def maybe_load(self, pieces: Pieces, dtype: torch.dtype) -> Tensor | None:
        return self.load(pieces, dtype) if pieces else None

    def load(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        return torch.cat([self._draw(piece.name, piece.shape) for piece in pieces]).to(dtype)

    def _draw(self, name: str, size: tuple[int, ...]) -> Tensor:
        noise = torch.randn(size, generator=torch.Generator().manual_seed(sum(name.encode())))
        if len(size) == 1:
            return 0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise
        return noise / size[1] ** 0.5


class LatentLayer:
    """A layer of this shape; x is [T, hidden]."""

    def __init__(self, spec: MlaSpec, hidden: int) -> None:
        self.spec, self.hidden = spec, hidden
        layer = LayerSpec(spec, MoESpec(RouterSpec(2, 1, True, True), ExpertSpec(8)))
        model = ModelSpec(
            "X", hidden, 8, (layer,), NormSpec(1e-5), False, 64, "float32", (), TensorNames()
        )
        self.sources = LatentSources(model, 0)
        self.reader = cast(WeightReader, RandomWeights())
        self.generator = torch.Generator().manual_seed(1)

    def rows(self, count: int) -> Tensor:
        return torch.randn(count, self.hidden, generator=self.generator)

    def cache(self, blocks: int, dtype: torch.dtype) -> Tensor:
        """Random latents and keys, as if of earlier tokens, as a kernel keeps them."""
        size = (blocks, BLOCK_TOKENS, self.spec.latent_dim)
        rows = torch.randn(size, generator=self.generator)
        if dtype.itemsize > 1:
            return rows.to(dtype)
        return packed_latents([quantised(group, dtype) for group in self.groups(rows)])

    def groups(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The channels of rows [..., R + r] that share scales."""
        rank = self.spec.kv_lora_rank
        sizes = [min(LATENT_GROUP, rank - first) for first in range(0, rank, LATENT_GROUP)]
        return rows.split([*sizes, self.spec.rope_dim], -1)

    def read(self, cache: Tensor) -> list[Codes]:
        """The groups of a cache of codes."""
        sizes = [group.shape[-1] for group in self.groups(torch.empty(self.spec.latent_dim))]
        codes, scales = cache.view(torch.int8).split(
            [BLOCK_TOKENS * sum(sizes), cache.shape[1] - BLOCK_TOKENS * sum(sizes)], 1
        )
        by_group = scales.contiguous().view(torch.bfloat16).unflatten(1, (BLOCK_TOKENS, -1))
        parts = (
            codes.unflatten(1, (BLOCK_TOKENS, -1)).contiguous().view(cache.dtype).split(sizes, -1)
        )
        return [Codes(part, by_group[..., i]) for i, part in enumerate(parts)]

    def packed(
        self, level: str | None = None, threads: int = 1, weight_dtype: str = "float32"
    ) -> cpu_latent.LatentAttention:
        shared = Threads(threads)
        placement = contiguous_placement(2, 1, [0])
        source = HalfSource(self.sources.spec, self.reader, placement, torch.float32, POSITIONS)
        loader = Loader(source, AttentionKernel(shared, level), weight_dtype, shared)
        return cpu_latent.LatentAttention(self.sources, loader, self._rotary(torch.float32))

    def expected(self, x: Tensor, batch: StepBatch, cache: Tensor) -> Tensor:
        """x plus attention in float64, but for the cache, which keeps its dtype."""
        attention = reference_latent.LatentAttention(
            self.sources, self.reader, self._rotary(torch.float64), torch.float64
        )
        return x + attention.forward(x.double(), batch, (cache,))

    def expected_over(self, x: Tensor, batch: StepBatch, cache: Tensor) -> Tensor:
        """The same over a cache of codes that has these rows' own already."""
        numbers = torch.cat([group.numbers for group in self.read(cache)], -1).double()
        kept = numbers.flatten(0, 1)[batch.kept_at]
        attention = _Kept(self.sources, self.reader, self._rotary(torch.float64), torch.float64)
        attention.kept = kept
        return x + attention.forward(x.double(), batch, (numbers,))

    def _rotary(self, dtype: torch.dtype) -> Tensor:
        spec = self.spec
        table = reference.rotary_table(spec.rope, spec.rope_dim, POSITIONS, torch.float32)
        return table.to(dtype)


class _Kept(reference_latent.LatentAttention):
    """Whose tokens leave what is given."""

    kept: Tensor

    def _latents(self, hidden: Tensor, factors: Tensor) -> Tensor:
        return self.kept


def packed_latents(groups: list[Codes]) -> Tensor:
    """Codes [N, B, n] of each group -> [N, bytes]: rows of codes, then rows of scales."""
    codes = torch.cat([group.codes.view(torch.int8) for group in groups], -1).flatten(1)
    scales = torch.stack([group.scales for group in groups], -1).flatten(1).view(torch.int8)
    return torch.cat((codes, scales), 1).view(groups[0].codes.dtype)


def run(
    attention: cpu_latent.LatentAttention, x: Tensor, batch: StepBatch, cache: Tensor
) -> Tensor:
    """x plus attention; the cache is written."""
    result = x.clone()
    attention.attend(result, batch, (cache,))
    return result
