"""Which implementation serves, decided once: what was built, what was asked for. No torch."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from megainfer.compute.cpu.kernels import library
from megainfer.config import DTYPE_BYTES, ON_CPU_ALONE
from megainfer.errors import ConfigError

if TYPE_CHECKING:
    from megainfer.compute.backend import Backend
    from megainfer.compute.cpu.kernels.threads import Threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Precision:
    """dtype: of messages, float32 or bfloat16. experts, attention: of weights, one of
    `config.WEIGHT_DTYPES`; cache: of keys and values, one of `config.KV_CACHE_DTYPES`; either may
    be auto, which is `dtype`."""

    dtype: str = "float32"
    experts: str = "auto"
    attention: str = "auto"
    cache: str = "auto"

    @property
    def expert_dtype(self) -> str:
        return self.dtype if self.experts == "auto" else self.experts

    @property
    def attention_dtype(self) -> str:
        return self.dtype if self.attention == "auto" else self.attention

    @property
    def cache_dtype(self) -> str:
        return self.dtype if self.cache == "auto" else self.cache


class Implementation(Protocol):
    """What is known of an implementation before it is loaded. module: where its backend is."""

    @property
    def module(self) -> str: ...

    @property
    def own_threads(self) -> bool:
        """Whether it computes with threads of its own, which torch's would fight for cores."""

    def describe(self) -> str:
        """With what of this machine it uses."""

    def check(self, precision: Precision) -> None:
        """Raises ConfigError for weights or a cache that it has no arithmetic for."""

    def open(self, precision: Precision, threads: "Threads | int", invariant: bool) -> "Backend":
        """threads: how many, or some that are shared with other kernels of the process. invariant:
        a row's result doesn't depend on what else is computed with it, as anyway on the CPU."""


class _Reference:
    own_threads = False
    module = "megainfer.compute.reference.backend"

    def describe(self) -> str:
        return "reference"

    def check(self, precision: Precision) -> None:
        if precision.expert_dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"--expert-dtype {precision.expert_dtype} needs the CPU kernels, but the reference "
                "serves; use bfloat16"
            )
        if precision.attention_dtype != precision.dtype:
            raise ConfigError(
                f"--attention-dtype {precision.attention_dtype} needs the CPU kernels, but the "
                f"reference serves; use {precision.dtype} or auto"
            )
        if precision.cache_dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"--kv-cache-dtype {precision.cache_dtype} needs the CPU kernels, but the "
                "reference serves; use bfloat16"
            )

    def open(self, precision: Precision, threads: "Threads | int", invariant: bool) -> "Backend":
        import torch

        from megainfer.compute.reference.backend import ReferenceBackend

        return ReferenceBackend(
            getattr(torch, precision.dtype),
            getattr(torch, precision.expert_dtype),
            cache_dtype=getattr(torch, precision.cache_dtype),
        )


class _Cpu:
    own_threads = True
    module = "megainfer.compute.cpu.backend"

    def describe(self) -> str:
        return f"cpu ({library.levels()[-1]})"

    def check(self, precision: Precision) -> None:
        """It has arithmetic for all."""

    def open(self, precision: Precision, threads: "Threads | int", invariant: bool) -> "Backend":
        import torch

        from megainfer.compute.cpu.backend import CpuBackend
        from megainfer.compute.kv_cache import CACHE_DTYPES

        dtype, cache_dtype = getattr(torch, precision.dtype), CACHE_DTYPES[precision.cache_dtype]
        weights = precision.attention_dtype, precision.expert_dtype
        return CpuBackend(dtype, *weights, cache_dtype, threads)


class _Gpu:
    own_threads = False
    module = "megainfer.compute.gpu.backend"

    def describe(self) -> str:
        return "gpu"

    def check(self, precision: Precision) -> None:
        if precision.expert_dtype in ON_CPU_ALONE:
            raise ConfigError(
                f"--expert-dtype {precision.expert_dtype} needs the CPU kernels; on a GPU use int8"
            )
        if precision.attention_dtype != precision.dtype:
            raise ConfigError(
                f"--attention-dtype {precision.attention_dtype} needs the CPU kernels; on a GPU "
                f"use {precision.dtype} or auto"
            )
        if precision.cache_dtype != precision.dtype:
            raise ConfigError(
                f"--kv-cache-dtype {precision.cache_dtype} needs the CPU kernels; on a GPU use "
                f"{precision.dtype} or auto"
            )

    def open(self, precision: Precision, threads: "Threads | int", invariant: bool) -> "Backend":
        """On the GPU that CUDA shows this process as the first."""
        import torch

        from megainfer.compute.gpu.backend import GpuBackend
        from megainfer.device.cuda import CudaDevice

        dtype = getattr(torch, precision.dtype)
        return GpuBackend(dtype, precision.expert_dtype, CudaDevice(), invariant=invariant)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": _Reference(),
    "cpu": _Cpu(),
    "gpu": _Gpu(),
}
"""By the name that `--kernels` has for them."""


def resolve_kernels(wish: str) -> str:
    """As asked for; of those on the CPU `auto` is `cpu` where it was built, and else says so in the
    log.

    Raises ConfigError when `cpu` is asked for and was not built.
    """
    if wish == "cpu":
        library.load()
    if wish != "auto":
        return wish
    if library.is_built():
        return "cpu"
    logger.warning(
        "the CPU kernels are not built (no C++ compiler at installation?); the slower reference "
        "in torch serves"
    )
    return "reference"


def check_precision(kernels: tuple[str, str], precision: Precision) -> None:
    """kernels: of attention nodes and of expert nodes. Raises ConfigError for weights or a cache
    that those who compute with them have no arithmetic for."""
    attention, experts = kernels
    IMPLEMENTATIONS[attention].check(replace(precision, experts="auto"))
    IMPLEMENTATIONS[experts].check(replace(precision, attention="auto", cache="auto"))


def open_backend(
    wish: str = "auto",
    precision: Precision = Precision(),
    threads: "Threads | int" = 1,
    invariant: bool = False,
) -> "Backend":
    """What a process computes with; wish: reference, cpu, gpu or auto, as for `resolve_kernels`.

    invariant: see `Implementation.open`. Raises ConfigError where it isn't there or has no
    arithmetic for such weights.
    """
    implementation = IMPLEMENTATIONS[resolve_kernels(wish)]
    implementation.check(precision)
    return implementation.open(precision, threads, invariant)
