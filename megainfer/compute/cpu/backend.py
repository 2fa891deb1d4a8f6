"""The C++ kernels as a `Backend`."""

from collections.abc import Callable
from functools import cached_property, partial

import torch

from megainfer.compute.cpu.half import CpuHalf
from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel
from megainfer.compute.cpu.kernels.threads import Threads, own_or_shared
from megainfer.compute.experts import ExpertsShape, FixedBatch
from megainfer.compute.half import HalfSource
from megainfer.device import HOST
from megainfer.m2n.packing import TORCH_PACKING, Packing


class CpuBackend:
    """`backend.Backend` in C++; all its kernels share one set of threads.

    attention_dtype, expert_dtype: of the weights, of `config.WEIGHT_DTYPES`. cache_dtype: of
    `kv_cache.CACHE_DTYPES`. threads: how many, or
    some that are shared with other kernels of the process.
    """

    name = "cpu"
    device = HOST
    packing: Packing = TORCH_PACKING

    def __init__(
        self,
        dtype: torch.dtype,
        attention_dtype: str,
        expert_dtype: str,
        cache_dtype: torch.dtype,
        threads: Threads | int = 1,
    ) -> None:
        self.dtype = dtype
        self.cache_dtype = cache_dtype
        self._attention_dtype = attention_dtype
        self._expert_dtype = expert_dtype
        self._threads = own_or_shared(threads)

    def half(self, source: HalfSource) -> CpuHalf:
        """See `backend.Backend.half`."""
        return CpuHalf(source, self._attention_dtype, self.tokens)

    def experts(self, shape: ExpertsShape) -> Callable[[int], CpuLayerExperts]:
        """See `backend.Backend.experts`."""
        kernel = ExpertKernel(shape, self._expert_dtype, self._threads)
        return partial(CpuLayerExperts, kernel)

    def fixed_batch(self, shape: ExpertsShape, messages: int, rows: int) -> FixedBatch | None:
        """See `backend.Backend.fixed_batch`."""
        return None

    @cached_property
    def tokens(self) -> AttentionKernel:
        """See `backend.Backend.tokens`; the same kernel computes its half."""
        return AttentionKernel(self._threads)
