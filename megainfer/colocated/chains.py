"""Whole layers in one call, and the clocks that hear of it."""

from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.chain import Chain
from megainfer.instruments.stage_clock import MicroBatchClock


def run_chain(
    chain: Chain,
    x: Tensor,
    layer: int,
    batch: StepBatch,
    clock: MicroBatchClock,
    experts: MicroBatchClock,
) -> None:
    """x [T, D] goes from `layer` to the chain's last; the clocks are told of both nodes' stages."""
    of_attention, of_experts, of_combine = chain.run(x, layer, batch)
    count = chain.layers.stop - layer
    clock.add("attention", of_attention, count)
    experts.add("expert", of_experts, count)
    clock.add("combine", of_combine, count)
    if clock.keeps_spans:
        _keep_spans(chain, layer, clock, experts)


def _keep_spans(chain: Chain, layer: int, clock: MicroBatchClock, experts: MicroBatchClock) -> None:
    for index, times in enumerate(chain.layer_times(layer), layer):
        clock.keep("attention", index, times.attention, times.experts)
        experts.keep("expert", index, times.experts, times.combine)
        clock.keep("combine", index, times.combine, times.end)
