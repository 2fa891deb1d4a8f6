"""Which implementation serves, decided once: what was built, what was asked for. No torch."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megainfer.compute.cpu.kernels import library
from megainfer.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from megainfer.compute.cpu.kernels.threads import Threads
    from megainfer.compute.experts import ExpertsShape, LayerExperts

logger = logging.getLogger(__name__)


def resolve_kernels(wish: str) -> str:
    """`reference` or `cpu`; `auto` is `cpu` where it was built, and else says so in the log.

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


def describe_kernels(kernels: str) -> str:
    """`cpu (avx512)`: with the best instruction set of this machine."""
    return f"cpu ({library.levels()[-1]})" if kernels == "cpu" else kernels


@dataclass(frozen=True, slots=True)
class ExpertKernels:
    """How a node computes its experts.

    name: reference, cpu or auto. weight_dtype: float32, bfloat16, int8 (cpu only), or auto, the
    dtype of the rows. threads: how many, or some that are shared with other kernels of the process
    (cpu only).
    """

    name: str = "auto"
    weight_dtype: str = "auto"
    threads: "Threads | int" = 1

    def layers(self, shape: "ExpertsShape", dtype: "torch.dtype") -> Callable[[], "LayerExperts"]:
        """What makes the experts of one layer after the other, still without weights.

        dtype: of the rows. Raises ConfigError for a weight dtype that there are no kernels for.
        """
        row_dtype = str(dtype).removeprefix("torch.")
        weight_dtype = row_dtype if self.weight_dtype == "auto" else self.weight_dtype
        if resolve_kernels(self.name) == "cpu":
            return _cpu_layers(shape, weight_dtype, self.threads)
        return _reference_layers(shape, weight_dtype)


@dataclass(frozen=True, slots=True)
class AttentionKernels:
    """How a node computes its attention halves.

    name: reference, cpu or auto. weight_dtype: float32, bfloat16, int8 (all for cpu only), or
    auto, the instance's dtype. threads: as for ExpertKernels.
    """

    name: str = "auto"
    weight_dtype: str = "auto"
    threads: "Threads | int" = 1

    def resolve(self, dtype: str) -> tuple[str, str]:
        """`reference` or `cpu`, and the weights' dtype in an instance of this one.

        Raises ConfigError for a weight dtype that there are no kernels for.
        """
        name = resolve_kernels(self.name)
        weight_dtype = dtype if self.weight_dtype == "auto" else self.weight_dtype
        check_attention_dtype(name, weight_dtype, dtype)
        return name, weight_dtype


def check_attention_dtype(kernels: str, weight_dtype: str, dtype: str) -> None:
    """Raises ConfigError where the reference is to compute with weights of another dtype."""
    if kernels == "reference" and weight_dtype != dtype:
        raise ConfigError(
            f"--attention-dtype {weight_dtype} needs the CPU kernels, but the reference serves; "
            f"use {dtype} or auto"
        )


def check_expert_dtype(kernels: str, weight_dtype: str) -> None:
    """Raises ConfigError where the reference is to compute what it has no arithmetic for."""
    if kernels == "reference" and weight_dtype == "int8":
        raise ConfigError(
            "--expert-dtype int8 needs the CPU kernels, but the reference serves; use bfloat16"
        )


def _cpu_layers(
    shape: "ExpertsShape", weight_dtype: str, threads: "Threads | int"
) -> Callable[[], "LayerExperts"]:
    from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel

    kernel = ExpertKernel(shape, weight_dtype, threads)
    return lambda: CpuLayerExperts(kernel)


def _reference_layers(shape: "ExpertsShape", weight_dtype: str) -> Callable[[], "LayerExperts"]:
    import torch

    from megainfer.compute.reference.experts import ReferenceLayerExperts

    check_expert_dtype("reference", weight_dtype)
    dtype: torch.dtype = getattr(torch, weight_dtype)
    return lambda: ReferenceLayerExperts(shape, dtype)
