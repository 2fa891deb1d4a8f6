"""What a bug report needs to know of software and machine."""

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from megainfer import m2n
from megainfer.compute.cpu.kernels import library
from megainfer.compute.gpu.packages import package_problem
from megainfer.config import format_bytes
from megainfer.launch.machine import Machine, read_machine
from megainfer.launch.nvml import Nvidia, ask_nvml
from megainfer.native.library import find_library

GPU_PACKAGES = ("cuda-bindings", "nvidia-nccl-cu13", "triton")
TOLD_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "gfni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
NOT_BUILT = "not built: no C++ compiler at installation"


def describe_environment() -> Iterator[str]:
    """A line each: its subject, then what there is to say."""
    yield _line("MegaInfer", version("megainfer"))
    yield _line("Python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield _line("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield _line("C library", " ".join(platform.libc_ver()) or "?")
    machine = read_machine()
    yield from _cpu(machine)
    total, free = format_bytes(machine.memory), format_bytes(machine.available_memory)
    yield _line("memory", f"{total}, {free} available")
    yield from _gpus(ask_nvml())
    yield _line("kernels", _kernels())
    yield _line("on GPUs", package_problem() or "nothing that they need is missing")
    yield _line("M2N", "native" if find_library(Path(m2n.__file__).parent) else NOT_BUILT)
    yield from (_line("package", text) for text in _packages())


def _cpu(machine: Machine) -> Iterator[str]:
    fields = _cpu_fields()
    yield _line("CPU", processor_name())
    yield _line("cores", f"{len(machine.cores)} usable")
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    yield _line(
        "CPU flags", " ".join(flag for flag in TOLD_FLAGS if flag in flags) or "none of ours"
    )


def processor_name() -> str:
    """As it calls itself."""
    return _cpu_fields().get("model name", platform.processor() or "?")


def _cpu_fields() -> dict[str, str]:
    """Of the first core."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _kernels() -> str:
    return f"cpu, {' '.join(library.levels())}" if library.is_built() else NOT_BUILT


def _gpus(nvidia: Nvidia) -> Iterator[str]:
    if nvidia.driver:
        yield _line("driver", nvidia.driver)
    if not nvidia.gpus:
        yield _line("GPU", f"none ({nvidia.problem})" if nvidia.problem else "none")
    for number, gpu in enumerate(nvidia.gpus):
        reached = [str(other) for other, peer in enumerate(nvidia.gpus) if peer.uuid in gpu.peers]
        yield _line(
            f"GPU {number}",
            f"{gpu.name}, {gpu.architecture}, {format_bytes(gpu.memory)}, "
            f"{format_bytes(gpu.free_memory)} free{', split into instances' * gpu.split}; "
            f"reaches {', '.join(reached) or 'no other'}",
        )


def _packages() -> Iterator[str]:
    """Every dependency, the optional ones that are installed too, and what GPUs need."""
    names = {re.split(r"[^A-Za-z0-9._-]", text)[0] for text in requires("megainfer") or []}
    for name in sorted(names.union(GPU_PACKAGES), key=str.lower):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not installed"


def _line(subject: str, text: str) -> str:
    return f"{subject:<10} {text}"
