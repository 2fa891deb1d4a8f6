"""An attention half in C++ at every level of this machine, and the reference that it is held to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import cast

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.cpu.attention import load_attention
from megainfer.compute.cpu.kernels.attention import AttentionKernel, step_rows
from megainfer.compute.cpu.kernels.attention_layer import BLOCK_TOKENS
from megainfer.compute.cpu.kernels.threads import Threads
from megainfer.compute.cpu.loader import Loader
from megainfer.compute.half import HalfSource
from megainfer.compute.reference import kernels as reference
from megainfer.compute.reference.attention import Attention
from megainfer.compute.rotary import rotary_of, rotary_tables
from megainfer.models.names import TensorNames
from megainfer.models.sources import AttentionSources
from megainfer.models.spec import (
    AttentionSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    Multipliers,
    NormSpec,
    RopeSpec,
    RouterSpec,
)
from megainfer.models.stored import Pieces
from megainfer.topology import contiguous_placement
from tests.support.cache_codes import Codes, quantised

EPS = 1e-6
POSITIONS = 300
ROPE = RopeSpec(1e4)
RMS = NormSpec(EPS)


@dataclass(frozen=True)
class Shape:
    """A layer of a model whose norms are these."""

    hidden: int
    attention: AttentionSpec
    norm: NormSpec = RMS
    residual: float = 1.0

    def model(self) -> ModelSpec:
        moe = MoESpec(RouterSpec(2, 1, normalise=True, rounded=False), ExpertSpec(4))
        return ModelSpec(
            architecture="Test",
            hidden_size=self.hidden,
            vocab_size=8,
            layers=(LayerSpec(self.attention, moe),),
            norm=self.norm,
            tie_word_embeddings=True,
            max_position=POSITIONS,
            dtype="float32",
            eos_token_ids=(),
            names=TensorNames(),
            multipliers=Multipliers(residual=self.residual),
        )


class RandomWeights:
    """A `WeightReader` of a checkpoint that has whatever is asked for."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def load(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        return torch.cat([self._piece(piece.name, piece.shape) for piece in pieces]).to(dtype)

    @cache  # noqa: B019
    def _piece(self, name: str, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed + sum(name.encode()))
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            return 1 + 0.2 * noise
        return noise / math.sqrt(shape[-1]) if len(shape) > 1 else noise


class Layer:
    """Random weights of one layer, computed by the reference in float64 or by a kernel."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape, self._spec = shape, shape.model()
        self._reader = cast(WeightReader, RandomWeights(seed))
        self._sources = AttentionSources(self._spec, 0)
        self.generator = torch.Generator().manual_seed(seed)

    def _rotary(self, dtype: torch.dtype) -> Tensor | None:
        tables = rotary_tables(self._spec, POSITIONS, torch.float32)
        table = rotary_of(self.shape.attention, tables)
        return None if table is None else table.to(dtype)

    def rows(self, count: int) -> Tensor:
        return torch.randn(count, self.shape.hidden, generator=self.generator)

    def cache(self, blocks: int, dtype: torch.dtype) -> Tensor:
        """Random keys and values, as if of earlier tokens, as a kernel keeps them."""
        spec = self.shape.attention
        size = (blocks, BLOCK_TOKENS, spec.num_kv_heads, spec.head_dim)
        keys, values = (torch.randn(size, generator=self.generator) for _ in range(2))
        return kept_cache(keys, values, dtype)

    def run(
        self,
        kernel: AttentionKernel,
        x: Tensor,
        batch: StepBatch,
        cache: Tensor,
        weight_dtype: str = "float32",
    ) -> Tensor:
        """x plus attention; the cache is written."""
        placement = contiguous_placement(2, 1, [0])
        source = HalfSource(self._spec, self._reader, placement, torch.float32, POSITIONS)
        loader = Loader(source, kernel, weight_dtype, Threads(1))
        packed = load_attention(self._sources, loader, self._rotary(torch.float32))
        step = step_rows(batch)
        result = x.clone()
        kernel.attend(packed, step, cache, result)
        return result

    def expected(self, x: Tensor, batch: StepBatch, cache: Tensor) -> Tensor:
        """The same in float64, but for the cache, which keeps its dtype, of floats."""
        projected = self._attention.project(x.double(), batch.positions)
        both = unpacked_cache(cache, self.shape.attention.head_dim)
        for part, new in zip(both, (projected.k, projected.v), strict=True):
            reference.write_cache(part, new.to(part.dtype), batch.kept_at)
        cache.copy_(packed_cache(*both))
        return self.expected_over(x, batch, cache)

    def expected_over(self, x: Tensor, batch: StepBatch, cache: Tensor) -> Tensor:
        """The same over a cache of any dtype that has these rows' keys and values already."""
        projected = self._attention.project(x.double(), batch.positions)
        both = read_cache(cache, self.shape.attention.head_dim)
        caches = tuple(part.double() for part in both)
        return x + self.shape.residual * self._attention.attend(projected, batch, caches)

    @cached_property
    def _attention(self) -> Attention:
        rotary = self._rotary(torch.float64)
        return Attention(self._sources, self._reader, rotary, torch.float64)


def kept_cache(keys: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Both [N, B, Hkv, d], as the kernels keep them in this dtype."""
    if dtype.itemsize > 1:
        return packed_cache(keys.to(dtype), values.to(dtype))
    return packed_codes(quantised(keys, dtype), quantised(values, dtype))


def read_cache(cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """The keys and values of `kept_cache`, as they were rounded."""
    if cache.itemsize > 1:
        return unpacked_cache(cache, head_dim)
    keys, values = unpacked_codes(cache, head_dim)
    return keys.numbers, values.numbers


def packed_codes(keys: Codes, values: Codes) -> Tensor:
    """Codes [N, B, Hkv, d] -> [N, Hkv, bytes]: values [B / 4, d, 4], keys [d / 4, B, 4], then the
    scales of values [B] and of keys [B]."""
    codes = packed_cache(keys.codes.view(torch.int8), values.codes.view(torch.int8)).flatten(2)
    scales = torch.cat([part.scales.permute(0, 2, 1) for part in (values, keys)], 2)
    whole = torch.cat((codes, scales.contiguous().view(torch.int8)), 2)
    return whole.view(keys.codes.dtype)


def unpacked_codes(cache: Tensor, head_dim: int) -> tuple[Codes, Codes]:
    """The keys and values that `packed_codes` was given."""
    size = 2 * BLOCK_TOKENS * head_dim
    plain, scales = cache.view(torch.int8).split([size, cache.shape[-1] - size], -1)
    both = unpacked_cache(plain.contiguous().unflatten(-1, (2, -1)), head_dim)
    values_scales, keys_scales = (
        part.permute(0, 2, 1) for part in scales.contiguous().view(torch.bfloat16).chunk(2, -1)
    )
    keys, values = (part.view(cache.dtype) for part in both)
    return Codes(keys, keys_scales), Codes(values, values_scales)


def packed_cache(keys: Tensor, values: Tensor) -> Tensor:
    """Both [N, B, Hkv, d] -> [N, Hkv, 2, B * d] as the kernels keep them.

    In float32 values [B, d], then keys [d, B]; in bfloat16 values [B / 2, d, 2] and keys
    [d / 2, B, 2]; codes of eight bits likewise, four a word.
    """
    pair = 4 // keys.itemsize
    keys = keys.unflatten(-1, (-1, pair)).permute(0, 2, 3, 1, 4)
    values = values.unflatten(1, (-1, pair)).permute(0, 3, 1, 4, 2)
    return torch.stack([values.flatten(2), keys.flatten(2)], 2)


def unpacked_cache(cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """The keys and values that `packed_cache` was given."""
    pair = 4 // cache.itemsize
    values, keys = cache.unbind(2)
    keys = keys.unflatten(-1, (-1, BLOCK_TOKENS, pair)).permute(0, 3, 1, 2, 4).flatten(3)
    values = values.unflatten(-1, (-1, head_dim, pair)).permute(0, 2, 4, 1, 3).flatten(1, 2)
    return keys.contiguous(), values.contiguous()


def batch_of(chunks: Sequence[tuple[int, int]]) -> tuple[StepBatch, int]:
    """A step of (start, tokens) chunks, one a sequence, whose blocks lie interleaved in memory;
    and how many blocks there are."""
    most = max(-(-(start + tokens) // BLOCK_TOKENS) for start, tokens in chunks)
    inputs = [
        ChunkInput([0] * tokens, start, [i + len(chunks) * b for b in range(most)], samples=True)
        for i, (start, tokens) in enumerate(chunks)
    ]
    return build_batch(inputs, block_size=BLOCK_TOKENS), most * len(chunks)
