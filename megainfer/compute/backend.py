"""What one process computes with."""

from collections.abc import Callable
from typing import Protocol

import torch

from megainfer.compute.experts import ExpertsShape, FixedBatch, LayerExperts
from megainfer.compute.half import HalfSource, ModelHalf
from megainfer.compute.tokens import TokenKernels
from megainfer.device import Device
from megainfer.m2n.packing import Packing


class Backend(Protocol):
    """An implementation of all that nodes compute, on one device; `selection.open_backend` makes it
    once a process, and whoever computes asks it."""

    @property
    def name(self) -> str:
        """`reference`, `cpu`, `gpu`."""

    @property
    def device(self) -> Device:
        """Where its tensors live and its kernels run."""

    @property
    def dtype(self) -> torch.dtype:
        """Of messages: the instance's."""

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of the KV cache: `dtype`, or another one of `kv_cache.CACHE_DTYPES`."""

    def half(self, source: HalfSource) -> ModelHalf:
        """An attention node's half of a model, loaded.

        Raises CheckpointError when a weight is missing or misshapen, ConfigError when it can't
        compute with the weights' dtype.
        """

    def experts(self, shape: ExpertsShape) -> Callable[[int], LayerExperts]:
        """What makes the experts of one layer after the other, still without weights. Of each it is
        told how many there will be at most, for which memory is had at once.

        Raises ConfigError when it can't compute with the weights' dtype.
        """

    def fixed_batch(self, shape: ExpertsShape, messages: int, rows: int) -> FixedBatch | None:
        """For batches of so many messages and rows at most, in the instance's dtype; None where
        experts can't be recorded."""

    @property
    def tokens(self) -> TokenKernels:
        """How tokens are found in logits."""

    @property
    def packing(self) -> Packing:
        """What fills payloads on its device, and adds replies there."""
