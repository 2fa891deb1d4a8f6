"""Linear attention with a recurrent state in torch."""

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.contexts import SequenceRows
from megainfer.compute.reference import kernels as kernels
from megainfer.compute.reference.norm import Norm
from megainfer.models.sources import DeltaNetSources


class DeltaNet:
    """Gated DeltaNet over the sequences' states, its input norm included.

    Projections are in the weights' dtype, what lies between them in float32.
    """

    def __init__(self, sources: DeltaNetSources, reader: WeightReader, dtype: torch.dtype) -> None:
        self._spec = sources.attention
        self._eps = sources.spec.norm.eps
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._qkvz = reader.load(sources.qkvz(), dtype)
        self._rates_and_decays = reader.load(sources.rates_and_decays(), dtype)
        self._taps = reader.load(sources.taps(), dtype)[:, 0].to(torch.float32)
        self._time_bias = reader.load(sources.time_bias(), dtype).to(torch.float32)
        self._log_decay = reader.load(sources.log_decay(), dtype).to(torch.float32)
        self._head_norm = reader.load(sources.head_norm(), dtype).to(torch.float32)
        self._out = reader.load(sources.out(), dtype)

    def forward(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """What is added to x [T, D]; the sequences' states take x's tokens in."""
        spec, hidden = self._spec, self._norm(x)
        sizes = [spec.channels, spec.value_size]
        qkv, gates = linear(hidden, self._qkvz).to(torch.float32).split_with_sizes(sizes, dim=-1)
        rates, decays = linear(hidden, self._rates_and_decays).to(torch.float32).chunk(2, dim=-1)
        decays = kernels.decays(decays, self._time_bias, self._log_decay)
        read = torch.empty(len(x), spec.value_heads, spec.value_dim, device=x.device)
        for rows in batch.sequences:
            own = slice(rows.start, rows.stop)
            states = self._states(rows, caches)
            read[own] = self._recur(qkv[own], decays[own], rates[own].sigmoid(), states)
        read = kernels.rms_norm(read, self._head_norm, self._eps).flatten(1) * silu(gates)
        return linear(read.to(x.dtype), self._out)

    def _states(self, rows: SequenceRows, caches: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The sequence's own past inputs and state; zero where it begins."""
        past, state = (cache[rows.state_slot] for cache in caches)
        if rows.first_position == 0:
            past.zero_()
            state.zero_()
        return past, state

    def _recur(
        self, qkv: Tensor, decay: Tensor, rate: Tensor, states: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One sequence's rows: [T, value heads, value dim]."""
        spec, (past, state) = self._spec, states
        mixed = kernels.causal_convolution(qkv, past, self._taps)
        q, k, v = mixed.split_with_sizes([spec.key_size, spec.key_size, spec.value_size], dim=-1)
        q, k = (self._by_value_head(part) for part in (q, k))
        return kernels.delta_rule(q, k, v.view(len(v), *state.shape[::2]), decay, rate, state)

    def _by_value_head(self, x: Tensor) -> Tensor:
        """[T, key size] -> [T, value heads, key dim], each head of length 1."""
        heads = kernels.unit_length(x.view(len(x), self._spec.key_heads, self._spec.key_dim))
        return heads.repeat_interleave(self._spec.value_heads // self._spec.key_heads, dim=1)
