"""Linear attention with a recurrent state on a GPU."""

import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.gpu.kernels.delta.convolution import convolve
from megainfer.compute.gpu.kernels.delta.delta_chunks import recur_by_chunks
from megainfer.compute.gpu.kernels.delta.delta_net import Recurrent, norm_gated, recur
from megainfer.compute.gpu.norm import Norm
from megainfer.compute.gpu.output import Output
from megainfer.compute.gpu.products import Products
from megainfer.compute.half import HalfSource
from megainfer.models.sources import DeltaNetSources


class DeltaNet:
    """Gated DeltaNet over the sequences' states, its input norm included.

    Projections are in the weights' dtype, what lies between them in float32. With products that are
    invariant prompts go through the rule token by token, too, so that a result doesn't depend on
    how they are cut.
    """

    def __init__(self, sources: DeltaNetSources, source: HalfSource, products: Products) -> None:
        reader, dtype = source.reader, source.dtype
        self._spec, self._device = sources.attention, source.device
        self._eps = sources.spec.norm.eps
        self._products = products
        self._many = recur if products.invariant else recur_by_chunks
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._qkvz = reader.load(sources.qkvz(), dtype)
        self._rates_and_decays = reader.load(sources.rates_and_decays(), dtype)
        self._taps = reader.load(sources.taps(), dtype)[:, 0].to(torch.float32)
        self._time_bias = reader.load(sources.time_bias(), dtype).to(torch.float32)
        self._log_decay = reader.load(sources.log_decay(), dtype).to(torch.float32)
        self._head_norm = reader.load(sources.head_norm(), dtype).to(torch.float32)
        residual = sources.spec.multipliers.residual
        self._out = Output(sources.out(), (), reader, dtype, residual, products)

    def add(self, to: Tensor, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """To `to` [T, D], which may be x; the sequences' states take x's tokens in."""
        spec, hidden = self._spec, self._norm(x)
        past, state = caches
        qkvz = self._products.linear(hidden, self._qkvz)
        mixed = self._device.empty((len(x), spec.channels), torch.float32)
        read = self._device.empty((len(x), spec.value_heads, spec.value_dim), torch.float32)
        inputs = Recurrent(
            mixed,
            self._products.linear(hidden, self._rates_and_decays),
            self._time_bias,
            self._log_decay,
            batch.positions,
        )
        for span in batch.spans:
            convolve(self._device, spec, qkvz, self._taps, past, span, batch.positions, mixed)
            rule = recur if span.most_rows == 1 else self._many
            rule(self._device, spec, inputs, state, span, read)
        gates = qkvz[:, spec.channels :]
        self._out.add(to, norm_gated(self._device, read, self._head_norm, gates, self._eps))
