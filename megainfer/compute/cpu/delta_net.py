"""Linear attention with a recurrent state in C++."""

import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.cpu.kernels.delta_net import DeltaNetWeights, Rows, pack_delta_net
from megainfer.compute.cpu.loader import Loader
from megainfer.models.sources import DeltaNetSources


class DeltaNet:
    """Gated DeltaNet over packed projections, its input norm and residual addition included."""

    def __init__(self, sources: DeltaNetSources, loader: Loader) -> None:
        spec = sources.spec
        self.state_shapes = sources.attention.state_shapes
        self._kernel = loader.kernel
        self._recurrence = loader.recurrence
        self._residual = spec.multipliers.residual
        self._norm = loader.norm(sources.norm(), ())
        self._qkvz = loader.linear(sources.qkvz())
        self._rates_and_decays = loader.exact_linear(sources.rates_and_decays())
        self._out = loader.linear(sources.out())
        weights = DeltaNetWeights(
            taps=loader.vector(sources.taps())[:, 0],
            time_bias=loader.vector(sources.time_bias()),
            log_decay=loader.vector(sources.log_decay()),
            head_norm=loader.vector(sources.head_norm()),
        )
        self._layer = pack_delta_net(sources.attention, weights, spec.norm.eps)

    def block_shapes(self, dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
        """None: a token leaves nothing of its own."""
        return ()

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        hidden = self._kernel.norm(x, self._norm)
        qkvz = self._kernel.linear(self._qkvz, hidden)
        rates_and_decays = self._kernel.linear(self._rates_and_decays, hidden)
        rows = Rows(batch.row_starts, batch.first_positions, batch.state_slots)
        read = self._recurrence.recur(self._layer, rows, qkvz, rates_and_decays, caches)
        x.add_(self._kernel.linear(self._out, read), alpha=self._residual)
