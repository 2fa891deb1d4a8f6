"""`megainfer serve` on a machine that believes to have GPUs, on which the CPU's kernels compute.

PRETENDED_GPUS=2 python -m tests.support.pretended_serve serve path/to/model ...
"""

import os
from typing import Any

import torch

from megainfer.compute import selection
from megainfer.compute.cpu.backend import CpuBackend
from tests.support.chaos.gpus import PretendedGpu, pretend_gpus

GPUS = "PRETENDED_GPUS"


class _Backend(CpuBackend):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.device = PretendedGpu()


class _Cpu(selection._Cpu):
    """For kernels of GPUs."""

    def open(self, precision: Any, threads: Any, invariant: bool) -> Any:
        dtype = getattr(torch, precision.dtype)
        weights = precision.attention_dtype, precision.expert_dtype
        return _Backend(dtype, *weights, dtype, threads)


def main() -> None:
    pretend_gpus(int(os.environ[GPUS]))
    selection.IMPLEMENTATIONS["gpu"] = _Cpu()
    from megainfer.cli import main as megainfer

    megainfer()


if __name__ == "__main__":
    main()
