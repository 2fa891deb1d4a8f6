"""An attention half in C++ at every level of this machine, and the reference that it is held to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.attention_node.batch import ChunkInput, StepBatch, build_batch
from megainfer.kernels import reference
from megainfer.kernels.cpu.attention import (
    BLOCK_TOKENS,
    AttentionKernel,
    pack_attention,
    step_rows,
)
from megainfer.models.spec import RopeSpec

EPS = 1e-6
POSITIONS = 300


@dataclass(frozen=True)
class Shape:
    """Of an attention layer; qk_norm: none, head or full."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    qk_norm: str = "none"
    bias: bool = False
    clip: float | None = None


class Layer:
    """Random weights of one layer, computed by the reference in float64 or by a kernel."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator)

        self.shape, d = shape, shape.head_dim
        q_size, kv_size = shape.heads * d, shape.kv_heads * d
        qkv = q_size + 2 * kv_size
        self.norm = 1 + 0.2 * random(shape.hidden)
        self.qkv = random(qkv, shape.hidden) / shape.hidden**0.5
        self.out = random(shape.hidden, q_size) / q_size**0.5
        self.qkv_bias = random(qkv) if shape.bias else None
        self.out_bias = random(shape.hidden) if shape.bias else None
        sizes = {"none": None, "head": (d, d), "full": (q_size, kv_size)}[shape.qk_norm]
        self.qk_norm = None if sizes is None else tuple(1 + 0.2 * random(n) for n in sizes)
        self.rotary = reference.rotary_table(RopeSpec(1e4), d, POSITIONS, torch.float32)
        self.generator = generator

    def rows(self, count: int) -> Tensor:
        return torch.randn(count, self.shape.hidden, generator=self.generator)

    def cache(self, blocks: int, dtype: torch.dtype) -> Tensor:
        """Random keys and values, as if of earlier tokens, as a kernel keeps them."""
        shape = self.shape
        size = (blocks, BLOCK_TOKENS, shape.kv_heads, shape.head_dim)
        keys, values = (torch.randn(size, generator=self.generator).to(dtype) for _ in range(2))
        return packed_cache(keys, values)

    def run(
        self,
        kernel: AttentionKernel,
        x: Tensor,
        batch: StepBatch,
        cache: Tensor,
        weight_dtype: str = "float32",
    ) -> Tensor:
        """x plus attention; the cache is written."""
        shape = self.shape
        packed = pack_attention(
            kernel.pack(self.qkv, weight_dtype, self.qkv_bias),
            kernel.pack(self.out, weight_dtype, self.out_bias),
            self.norm,
            self.qk_norm,
            self.rotary,
            heads=(shape.heads, shape.kv_heads),
            head_dim=shape.head_dim,
            eps=EPS,
            clip=shape.clip,
            norm_each_head=shape.qk_norm == "head",
        )
        step = step_rows(batch)
        result = x.clone()
        kernel.attend(packed, step, cache, result)
        return result

    def expected(self, x: Tensor, batch: StepBatch, cache: Tensor) -> Tensor:
        """The same in float64, but for the cache, which keeps its dtype."""
        q, k, v = self._project(x.double())
        factors = self.rotary[batch.positions].double()
        q, k = reference.rotate(q, factors), reference.rotate(k, factors)
        both = unpacked_cache(cache, self.shape.head_dim)
        for part, new in zip(both, (k, v), strict=True):
            reference.write_cache(part, new.to(part.dtype), batch.slots)
        cache.copy_(packed_cache(*both))
        keys, values = (part.double() for part in both)
        parts = []
        if batch.decodes is not None:
            table, mask = batch.decodes.block_table, batch.decodes.mask
            parts.append(reference.decode_attention(q[: len(table)], keys, values, table, mask))
        for p in batch.prefills:
            rows = q[p.start : p.stop]
            parts.append(reference.prefill_attention(rows, keys, values, p.blocks, p.context))
        return x + linear(torch.cat(parts), self.out.double(), _double(self.out_bias))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        normed = reference.rms_norm(x, self.norm.double(), EPS)
        both = linear(normed, self.qkv.double(), _double(self.qkv_bias))
        q_size, kv_size = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        q, k, v = both.split_with_sizes([q_size, kv_size, kv_size], dim=-1)
        if shape.qk_norm == "full":
            q, k = self._normalise(q, k)
        if shape.clip is not None:
            q, k, v = (part.clamp(-shape.clip, shape.clip) for part in (q, k, v))
        q, k, v = (part.unflatten(-1, (-1, shape.head_dim)) for part in (q, k, v))
        if shape.qk_norm == "head":
            q, k = self._normalise(q, k)
        return q, k, v

    def _normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        assert self.qk_norm is not None
        q_norm, k_norm = (weight.double() for weight in self.qk_norm)
        return reference.rms_norm(q, q_norm, EPS), reference.rms_norm(k, k_norm, EPS)


def packed_cache(keys: Tensor, values: Tensor) -> Tensor:
    """Both [N, B, Hkv, d] -> [N, Hkv, 2, B * d] as the kernels keep them.

    In float32 values [B, d], then keys [d, B]; in bfloat16 values [B / 2, d, 2] and keys
    [d / 2, B, 2].
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


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def batch_of(chunks: Sequence[tuple[int, int]]) -> tuple[StepBatch, int]:
    """A step of (start, tokens) chunks, one a sequence, whose blocks lie interleaved in memory;
    and how many blocks there are."""
    most = max(-(-(start + tokens) // BLOCK_TOKENS) for start, tokens in chunks)
    inputs = [
        ChunkInput([0] * tokens, start, [i + len(chunks) * b for b in range(most)], samples=True)
        for i, (start, tokens) in enumerate(chunks)
    ]
    return build_batch(inputs, BLOCK_TOKENS), most * len(chunks)
