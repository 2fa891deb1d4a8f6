"""Nodes that believe to be on GPUs: their device is the host, which does what it is given at once
and can fail as CUDA does."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megainfer.compute import selection
from megainfer.compute.cpu.backend import CpuBackend
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel
from megainfer.compute.experts import ExpertsShape, LayerExperts
from megainfer.compute.reference.backend import ReferenceBackend
from megainfer.device import Recordings
from megainfer.device.host import HostDevice, HostEvent, HostReadback
from megainfer.launch import machine
from megainfer.launch.nvml import Nvidia
from tests.support.gpus import h200

ILLEGAL = "CUDA error: an illegal memory access was encountered"


def illegal_access() -> torch.AcceleratorError:
    """As torch raises it, at whatever asks the device next."""
    return torch.AcceleratorError(f"{ILLEGAL}\nCUDA kernel errors might be reported later.")


class PretendedEvent(HostEvent):
    """Asked by nodes, and a place for faults."""

    def done(self) -> bool:
        return True


class PretendedGpu(HostDevice):
    """`Device` whose work somebody has to wait for, as nodes know it."""

    name = "cuda:0"
    is_host = False

    def upload(self, host: Tensor) -> Tensor:
        return super().upload(host)

    def read_back(self, tensor: Tensor) -> HostReadback:
        return HostReadback(tensor.clone())

    def event(self, timed: bool = False) -> PretendedEvent:
        return PretendedEvent()

    def capture(self, work: Callable[[], object]) -> Callable[..., None]:
        return super().capture(work)  # type: ignore[return-value]  # a fake's


class _Batch:
    """`experts.FixedBatch` of whatever kernels do at once."""

    def __init__(self, shape: ExpertsShape, dtype: torch.dtype, rows: int) -> None:
        self.rows = rows
        hidden, ids = torch.zeros(1, shape.hidden, dtype=dtype), torch.full((1, shape.top_k), -1)
        self.take([hidden], [ids.int()], [ids.float()], [torch.empty_like(hidden)], [None])

    def take(self, *messages: Sequence[Any]) -> None:
        self._taken = messages

    def record(
        self, recordings: Recordings, layer: LayerExperts, count: Callable[[Tensor], object]
    ) -> Callable[[], object]:
        _, replay = recordings.make(lambda: count(layer.forward(*self._taken)))
        return replay


class _Backend(ReferenceBackend):
    """Whose experts' stages are recorded, too."""

    def fixed_batch(self, shape: ExpertsShape, messages: int, rows: int) -> Any:
        return _Batch(shape, self.dtype, rows)


class _Reference(selection._Reference):
    """For kernels of GPUs."""

    def describe(self) -> str:
        return "gpu"

    def open(self, precision: Any, threads: Any, invariant: bool) -> Any:
        dtype = getattr(torch, precision.dtype)
        return _Backend(dtype, getattr(torch, precision.expert_dtype), PretendedGpu())


class _CpuExperts(CpuLayerExperts):
    """Whose messages may have rows that don't count, as on a device."""

    def forward(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        counts: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        own = [ids.clone() for ids in local_ids]
        for ids, count in zip(own, counts or [None] * len(own), strict=True):
            if count is not None:
                ids[int(count) :] = -1
        return super().forward(hidden, own, weights, outs)


class _CpuBackend(CpuBackend):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.device = PretendedGpu()

    def experts(self, shape: ExpertsShape) -> Callable[[int], CpuLayerExperts]:
        kernel = ExpertKernel(shape, self._expert_dtype, self._threads)
        return partial(_CpuExperts, kernel)


class _Cpu(selection._Cpu):
    """For kernels of GPUs, where nodes have several ranks."""

    def open(self, precision: Any, threads: Any, invariant: bool) -> Any:
        dtype = getattr(torch, precision.dtype)
        weights = precision.attention_dtype, precision.expert_dtype
        return _CpuBackend(dtype, *weights, dtype, threads)


KERNELS: dict[str, Callable[[], selection.Implementation]] = {
    "reference": _Reference,
    "cpu": _Cpu,
}
"""What computes in place of GPUs."""


def pretend_gpus(count: int, kernels: str = "reference") -> None:
    """From here on this machine has so many, in this process and those that it forks. kernels: of
    `KERNELS`."""
    nvidia = Nvidia(tuple(h200(number) for number in range(count)), "pretended")
    machine.ask_nvml = lambda: nvidia  # type: ignore[attr-defined, assignment]  # faked
    machine.package_problem = lambda: ""  # type: ignore[attr-defined, assignment]  # faked
    selection.IMPLEMENTATIONS["gpu"] = KERNELS[kernels]()
