"""Multi-head latent attention with packed weights, in its absorbed form."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.compute.cpu.kernels.attention_layer import CACHE_TYPES, latent_block_shape
from megainfer.compute.cpu.kernels.experts import FORMATS, on_large_pages
from megainfer.compute.cpu.kernels.packed import PackedLinear
from megainfer.compute.cpu.kernels.threads import Threads
from megainfer.models.spec import MlaSpec


@dataclass(frozen=True, slots=True)
class PackedHeads:
    """y = W x for each head, with packed weights; `native` points into `panels`."""

    native: library.HeadsLinear
    panels: Tensor


@dataclass(frozen=True, slots=True)
class LatentWeights:
    """Of one layer. q: from the queries' latent where q_down is there, else from the input.

    kv_down: the latent, then the key that is rotated. key_up: of each head from its query to the
    space of latents; value_up: from there to its value. Norms: float32; q_norm beside q_down.
    rotary: float32 [positions, 2, r].
    """

    q_down: PackedLinear | None
    q: PackedLinear
    kv_down: PackedLinear
    out: PackedLinear
    key_up: PackedHeads
    value_up: PackedHeads
    norm: Tensor
    q_norm: Tensor | None
    kv_norm: Tensor
    rotary: Tensor


@dataclass(frozen=True, slots=True)
class PackedLatent:
    """One layer's latent attention; `kept` is what `native` points into."""

    spec: MlaSpec
    native: library.LatentLayer
    kept: LatentWeights


class LatentKernel:
    """The C++ object that computes latent attention beside an `AttentionKernel`, whose products it
    uses; it owns scratch. threads: those of the other. One caller at a time.
    """

    def __init__(self, kernel: AttentionKernel, threads: Threads) -> None:
        self._native = library.load()
        self._kernel = kernel
        self._handle = self._native.megainfer_latent_new(kernel.handle, threads.handle)
        weakref.finalize(self, self._native.megainfer_latent_delete, self._handle)

    def pack_heads(self, weights: Sequence[Tensor], weight_dtype: str) -> PackedHeads:
        """weights: of each head [outputs, inputs], of any float dtype, all of one shape."""
        outputs, inputs = weights[0].shape
        packed = (self._kernel.pack(weight, weight_dtype).panels for weight in weights)
        first = next(packed)
        panels = on_large_pages(len(weights) * len(first)).view(len(weights), -1)
        for to, head in zip(panels, chain([first], packed), strict=True):
            to.copy_(head)
        native = library.HeadsLinear(panels.data_ptr(), inputs, outputs, FORMATS[weight_dtype])
        return PackedHeads(native, panels)

    def attend(self, layer: PackedLatent, step: library.StepRows, cache: Tensor, x: Tensor) -> None:
        """x [T, D] += attention of its norm; the rows' latents and keys go into the cache.

        cache: [blocks, *latent_block_shape(spec, dtype)], of one of `CACHE_TYPES`. x: float32.
        """
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert cache.is_contiguous()
        native = layer.native
        assert cache.shape[1:] == latent_block_shape(layer.spec, cache.dtype)
        kept = library.LayerCache(cache.data_ptr(), CACHE_TYPES[cache.dtype])
        self._native.megainfer_latent_attend(self._handle, native, step, kept, x.data_ptr())


def pack_latent(
    weights: LatentWeights, spec: MlaSpec, *, eps: float, residual: float
) -> PackedLatent:
    """eps: of the layer's input norm. residual: what attention adds is multiplied with it."""
    absent = library.Linear()
    native = library.LatentLayer(
        absent if weights.q_down is None else weights.q_down.native,
        weights.q.native,
        weights.kv_down.native,
        weights.out.native,
        weights.key_up.native,
        weights.value_up.native,
        weights.norm.data_ptr(),
        None if weights.q_norm is None else weights.q_norm.data_ptr(),
        weights.kv_norm.data_ptr(),
        weights.rotary.data_ptr(),
        spec.num_heads,
        spec.nope_dim,
        spec.rope_dim,
        spec.kv_lora_rank,
        spec.v_dim,
        eps,
        spec.latent_eps,
        spec.scale,
        residual,
    )
    return PackedLatent(spec, native, weights)
