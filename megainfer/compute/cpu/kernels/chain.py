"""Whole layers in one call, where attention and all experts are in one process."""

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.compute.chain import LayerTimes
from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.attention import AttentionKernel, PackedGate
from megainfer.compute.cpu.kernels.attention_layer import ROW_TYPES, PackedAttention, layer_cache
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A layer whose network is its experts alone; its gate sends everything to one node.

    counts: int64 [E], where the choices of each expert are added up.
    """

    attention: PackedAttention
    gate: PackedGate
    experts: CpuLayerExperts
    counts: Tensor


class LayerChain:
    """Layers that follow each other, over one cache; the kernels are shared with whoever else.

    caches: keys and values of each layer. row_dtype: of what the experts read and write, float32
    or bfloat16. One caller at a time.
    """

    def __init__(
        self,
        half: AttentionKernel,
        experts: ExpertKernel,
        layers: Sequence[PackedLayer],
        caches: Sequence[tuple[Tensor, ...]],
        row_dtype: torch.dtype,
    ) -> None:
        native = library.load()
        self._native = native
        self._kept = half, experts, layers, caches  # the native side points into these
        self._layers = (library.ChainLayer * len(layers))(
            *(_native_layer(*both) for both in zip(layers, caches, strict=True))
        )
        self._row_type = ROW_TYPES[row_dtype]
        self._times = (ctypes.c_double * (3 * len(layers) + 1))()
        self._totals = (ctypes.c_double * 3)()
        self._handle = native.megainfer_chain_new(half.handle, experts.handle)
        weakref.finalize(self, native.megainfer_chain_delete, self._handle)

    def run(self, step: library.StepRows, x: Tensor, first: int = 0) -> tuple[float, float, float]:
        """x [T, D], float32, goes through the layers from `first` on; the tokens' keys and values
        are cached. The seconds of attention halves, of experts, and of adding their sums to x.
        """
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        self._native.megainfer_chain_run(
            self._handle,
            ctypes.byref(self._layers[first]),
            len(self._layers) - first,
            step,
            self._row_type,
            x.data_ptr(),
            self._times,
            self._totals,
        )
        return tuple(self._totals)

    def layer_times(self, first: int = 0) -> list[LayerTimes]:
        """Of each layer of the last run, which began at layer `first`."""
        times = list(self._times)
        count = len(self._layers) - first
        return [LayerTimes(*times[3 * i : 3 * i + 4]) for i in range(count)]


def _native_layer(layer: PackedLayer, cache: tuple[Tensor, ...]) -> library.ChainLayer:
    (memory,) = cache
    return library.ChainLayer(
        ctypes.pointer(layer.attention.native),
        ctypes.pointer(layer.gate.native),
        layer_cache(layer.attention, memory),
        layer.experts.native,
        layer.counts.data_ptr(),
    )
