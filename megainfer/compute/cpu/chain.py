"""Which layers the C++ kernels can compute in a single call, and that call."""

from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.chain import CountedExperts, LayerTimes
from megainfer.compute.cpu.kernels.attention import AttentionKernel, PackedGate, step_rows
from megainfer.compute.cpu.kernels.attention_layer import PackedAttention
from megainfer.compute.cpu.kernels.chain import LayerChain, PackedLayer
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts
from megainfer.compute.kv_cache import KVCache


class PlainRouting(NamedTuple):
    """What comes before a layer's experts, where there is nothing else beside them."""

    attention: PackedAttention
    gate: PackedGate


class CpuChain:
    """`chain.Chain` in C++."""

    def __init__(self, layers: range, native: LayerChain) -> None:
        self.layers = layers
        self._native = native

    def run(self, x: Tensor, layer: int, batch: StepBatch) -> tuple[float, float, float]:
        """See `chain.Chain.run`."""
        return self._native.run(step_rows(batch), x, layer - self.layers.start)

    def layer_times(self, layer: int) -> list[LayerTimes]:
        """See `chain.Chain.layer_times`."""
        return self._native.layer_times(layer - self.layers.start)


def chains_of(
    kernel: AttentionKernel,
    routings: Mapping[int, PlainRouting],
    experts: Mapping[int, CountedExperts],
    kv: KVCache,
    row_dtype: torch.dtype,
) -> tuple[CpuChain, ...]:
    """The longest runs of these layers; row_dtype: of what their experts read and write."""
    packed = {layer: _packed(routing, experts[layer]) for layer, routing in routings.items()}
    # Of consecutive layers, each less its place in the list is the same.
    runs = groupby(enumerate(packed), key=lambda item: item[1] - item[0])
    return tuple(
        _chain({layer: packed[layer] for _, layer in run}, kernel, kv, row_dtype) for _, run in runs
    )


def _packed(routing: PlainRouting, own: CountedExperts) -> PackedLayer:
    assert isinstance(own.experts, CpuLayerExperts), "a half and experts of different backends"
    return PackedLayer(*routing, own.experts, own.tokens)


def _chain(
    packed: Mapping[int, PackedLayer], kernel: AttentionKernel, kv: KVCache, row_dtype: torch.dtype
) -> CpuChain:
    first, own = min(packed), list(packed.values())
    caches = [kv.layer(layer) for layer in packed]
    native = LayerChain(kernel, own[0].experts.kernel, own, caches, row_dtype)
    return CpuChain(range(first, first + len(own)), native)
