"""The part of gated DeltaNet between its projections: convolution and recurrence."""

import weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.threads import Threads, own_or_shared
from megainfer.errors import ConfigError
from megainfer.models.spec import DeltaNetSpec


class Rows(NamedTuple):
    """A step's sequences, int64: the rows of sequence s are row_starts[s] to row_starts[s + 1] - 1,
    the first is its token at first_positions[s], and its state is in slots[s]."""

    row_starts: Tensor
    first_positions: Tensor
    slots: Tensor


@dataclass(frozen=True, slots=True)
class DeltaNetWeights:
    """One layer's, float32. taps: [channels, taps], the newest input's last. time_bias, log_decay:
    [value heads]. head_norm: [value dim]."""

    taps: Tensor
    time_bias: Tensor
    log_decay: Tensor
    head_norm: Tensor


@dataclass(frozen=True, slots=True)
class PackedDeltaNet:
    """One layer; `kept` are the tensors that `native` points into."""

    native: library.DeltaNetLayer
    spec: DeltaNetSpec
    kept: tuple[Tensor, ...]


class DeltaNetKernel:
    """The C++ object that computes recurrences; it owns scratch.

    threads: shared with other kernels, or how many to have. level: an instruction set of
    `library.levels()`, the best unless given. One caller at a time.

    Raises ConfigError when the library isn't built or can't run the level here.
    """

    def __init__(self, threads: Threads | int = 1, level: str | None = None) -> None:
        self._native = library.load()
        self._threads = own_or_shared(threads)
        name = level or library.levels()[-1]
        self._handle = self._native.megainfer_delta_new(name.encode(), self._threads.handle)
        if self._handle is None:
            raise ConfigError(
                f"kernels of level {name!r} don't run here; use one of "
                f"{', '.join(library.levels())}"
            )
        weakref.finalize(self, self._native.megainfer_delta_delete, self._handle)

    def recur(
        self,
        layer: PackedDeltaNet,
        rows: Rows,
        qkvz: Tensor,
        rates_and_decays: Tensor,
        states: tuple[Tensor, ...],
    ) -> Tensor:
        """What the rows read of their sequences' states, normed and gated: [T, value size].

        qkvz: [T, channels + value size]. rates_and_decays: [T, 2 * value heads]. states: as
        `DeltaNetSpec.state_shapes` says, of all slots, which take the rows in. All float32.
        """
        past, state = states
        out = torch.empty(len(qkvz), layer.spec.value_size)
        for tensor in (qkvz, rates_and_decays, *states):
            assert tensor.dtype == torch.float32
        for tensor, shape in zip(states, layer.spec.state_shapes, strict=True):
            assert tensor.shape[1:] == shape
        step = library.DeltaNetStep(*map(_address, rows), len(rows.slots))
        self._native.megainfer_delta_recur(
            self._handle,
            layer.native,
            step,
            _address(qkvz),
            _address(rates_and_decays),
            library.DeltaNetState(_address(past), _address(state)),
            _address(out),
        )
        return out


def pack_delta_net(spec: DeltaNetSpec, weights: DeltaNetWeights, eps: float) -> PackedDeltaNet:
    """eps: of the heads' norm."""
    kept = (
        weights.taps.t().contiguous(),
        weights.time_bias,
        weights.log_decay.exp(),
        weights.head_norm,
    )
    native = library.DeltaNetLayer(
        *map(_address, kept),
        spec.key_heads,
        spec.value_heads,
        spec.key_dim,
        spec.value_dim,
        spec.taps,
        eps,
    )
    return PackedDeltaNet(native, spec, kept)


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()
