"""Whole layers at once, where attention and all experts are in one process."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.experts import LayerExperts


class CountedExperts(NamedTuple):
    """All experts of a layer. tokens: int64 [E], where the choices of each are added up."""

    experts: LayerExperts
    tokens: Tensor


class LayerTimes(NamedTuple):
    """Seconds of the monotonic clock: when a layer began, its experts, adding their sums to x."""

    attention: float
    experts: float
    combine: float
    end: float


class Chain(Protocol):
    """Consecutive layers, their experts included, that are computed in a single call over one
    cache."""

    @property
    def layers(self) -> range: ...

    def run(self, x: Tensor, layer: int, batch: StepBatch) -> tuple[float, float, float]:
        """x [T, D] goes through the layers from `layer` on; the tokens' keys and values are cached.

        The seconds of attention halves, of experts, and of adding their sums to x.
        """

    def layer_times(self, layer: int) -> Sequence[LayerTimes]:
        """Of each layer of the last run, which began at `layer`."""
