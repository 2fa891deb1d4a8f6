"""The Triton kernels as a `Backend`."""

from collections.abc import Callable
from functools import partial

import torch

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.experts import ExpertPool, GpuLayerExperts
from megainfer.compute.gpu.fixed_batch import GpuFixedBatch
from megainfer.compute.gpu.half import GpuHalf
from megainfer.compute.gpu.kernels.routing.packing import KernelPacking
from megainfer.compute.gpu.products import products_on
from megainfer.compute.gpu.tokens import GpuTokens
from megainfer.compute.half import HalfSource
from megainfer.compute.tokens import TokenKernels
from megainfer.device import HOST, Device
from megainfer.m2n.packing import Packing


class GpuBackend:
    """`backend.Backend` on a GPU, or interpreted on the host.

    expert_dtype: of the experts' weights, one of torch's dtypes or the name of one of
    `formats.registry`; others have `dtype`. invariant: a row's result doesn't
    depend on what else is computed with it, which costs some speed.
    """

    name = "gpu"
    packing: Packing = KernelPacking()

    def __init__(
        self,
        dtype: torch.dtype,
        expert_dtype: torch.dtype | str,
        device: Device = HOST,
        *,
        invariant: bool = False,
    ) -> None:
        self.dtype = self.cache_dtype = dtype
        self.device = device
        self.tokens: TokenKernels = GpuTokens(device)
        self._expert_format = str(expert_dtype).removeprefix("torch.")
        self._invariant = invariant

    def half(self, source: HalfSource) -> GpuHalf:
        """See `backend.Backend.half`."""
        return GpuHalf(source, products_on(self.device, self._invariant))

    def experts(self, shape: ExpertsShape) -> Callable[[int], GpuLayerExperts]:
        """See `backend.Backend.experts`."""
        pool = ExpertPool(shape, self._expert_format, self.device, invariant=self._invariant)
        return partial(GpuLayerExperts, pool)

    def fixed_batch(self, shape: ExpertsShape, messages: int, rows: int) -> GpuFixedBatch:
        """See `backend.Backend.fixed_batch`."""
        return GpuFixedBatch(self.device, shape, self.dtype, messages, rows)
