"""Where C++ kernels serve: which layers can be computed in a single call, and that call."""

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from megainfer.attention_node.model import AttentionModel
from megainfer.compute.batch import StepBatch
from megainfer.compute.cpu.half import CpuHalf
from megainfer.compute.cpu.kernels.attention import step_rows
from megainfer.compute.cpu.kernels.chain import LayerChain, PackedLayer
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts
from megainfer.compute.kv_cache import KVCache
from megainfer.expert_node.experts import ExpertModel
from megainfer.instruments.stage_clock import MicroBatchClock


class Chain:
    """Consecutive layers in one call."""

    def __init__(self, layers: range, native: LayerChain) -> None:
        self.layers = layers
        self._native = native

    def run(
        self,
        x: Tensor,
        layer: int,
        batch: StepBatch,
        clock: MicroBatchClock,
        experts: MicroBatchClock,
    ) -> None:
        """x [T, D] goes from `layer` to the last of these, and the clocks hear of it."""
        step = step_rows(batch)
        first = layer - self.layers.start
        of_attention, of_experts, of_combine = self._native.run(step, x, first)
        count = len(self.layers) - first
        clock.add("attention", of_attention, count)
        experts.add("expert", of_experts, count)
        clock.add("combine", of_combine, count)
        if clock.keeps_spans:
            self._keep_spans(layer, clock, experts)

    def _keep_spans(self, layer: int, clock: MicroBatchClock, experts: MicroBatchClock) -> None:
        for times in self._native.layer_times(layer - self.layers.start):
            clock.keep("attention", layer, times.attention, times.experts)
            experts.keep("expert", layer, times.experts, times.combine)
            clock.keep("combine", layer, times.combine, times.end)
            layer += 1


def find_chains(attention: AttentionModel, experts: ExpertModel, kv: KVCache) -> tuple[Chain, ...]:
    """The longest runs of layers that have only experts; none where the reference serves."""
    half = attention.half
    if not isinstance(half, CpuHalf):
        return ()
    packed = {layer: _packed(half, experts, layer) for layer in experts.spec.moe_layers}
    plain = [(layer, own) for layer, own in packed.items() if own is not None]
    # Of consecutive layers, each less its place in the list is the same.
    runs = groupby(enumerate(plain), key=lambda item: item[1][0] - item[0])
    return tuple(_chain(dict(own for _, own in run), half, kv, attention.dtype) for _, run in runs)


def _packed(half: CpuHalf, experts: ExpertModel, layer: int) -> PackedLayer | None:
    routing, own = half.layers[layer].plain_routing, experts.layer(layer)
    if routing is None or not isinstance(own, CpuLayerExperts):
        return None
    return PackedLayer(*routing, own, experts.layer_tokens(layer))


def _chain(
    packed: Mapping[int, PackedLayer], half: CpuHalf, kv: KVCache, row_dtype: torch.dtype
) -> Chain:
    first, own = min(packed), list(packed.values())
    caches = [kv.layer(layer) for layer in packed]
    native = LayerChain(half.kernel, own[0].experts.kernel, own, caches, row_dtype)
    return Chain(range(first, first + len(own)), native)
