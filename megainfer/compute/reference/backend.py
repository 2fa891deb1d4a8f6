"""The reference as a `Backend`."""

from collections.abc import Callable

import torch

from megainfer.compute.experts import ExpertsShape, FixedBatch
from megainfer.compute.half import HalfSource
from megainfer.compute.reference.experts import ReferenceLayerExperts
from megainfer.compute.reference.half import ReferenceHalf
from megainfer.compute.reference.tokens import ReferenceTokens
from megainfer.compute.tokens import TokenKernels
from megainfer.device import HOST, Device
from megainfer.m2n.packing import TORCH_PACKING, Packing


class ReferenceBackend:
    """`backend.Backend` in torch. expert_dtype: of the experts' weights; others have `dtype`.
    cache_dtype: float32 or bfloat16; `dtype` where None."""

    name = "reference"
    packing: Packing = TORCH_PACKING

    def __init__(
        self,
        dtype: torch.dtype,
        expert_dtype: torch.dtype,
        device: Device = HOST,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        self.cache_dtype = cache_dtype or dtype
        self.device = device
        self.tokens: TokenKernels = ReferenceTokens(device)
        self._expert_dtype = expert_dtype

    def half(self, source: HalfSource) -> ReferenceHalf:
        """See `backend.Backend.half`."""
        return ReferenceHalf(source)

    def experts(self, shape: ExpertsShape) -> Callable[[int], ReferenceLayerExperts]:
        """See `backend.Backend.experts`."""
        return lambda _: ReferenceLayerExperts(shape, self._expert_dtype, self.device)

    def fixed_batch(self, shape: ExpertsShape, messages: int, rows: int) -> FixedBatch | None:
        """See `backend.Backend.fixed_batch`."""
        return None
