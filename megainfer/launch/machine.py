"""What a machine has, read once and passed on as a value. Linux."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megainfer.compute.gpu.packages import package_problem
from megainfer.launch.nvml import Gpu, ask_nvml, visible_gpus
from megainfer.topology import Socket

VISIBLE = "CUDA_VISIBLE_DEVICES"
NUMA_NODES = Path("/sys/devices/system/node")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What an instance may have of a machine.

    cores: that processes may run on, ascending. memory: bytes that it has. available_memory: bytes
    that new processes can take, as the kernel deems, within the cgroup. bfloat16_arithmetic:
    whether the cores multiply bfloat16 natively (AVX-512 BF16, AMX, or Arm's BF16). sockets: those
    cores by the memory beside them, where the system tells. gpus: those
    that CUDA_VISIBLE_DEVICES leaves, in its order. gpu_problem: why nothing can be computed on any,
    "" where it can. driver: the version of NVIDIA's, "" without one.
    """

    cores: tuple[int, ...]
    memory: int
    available_memory: int
    bfloat16_arithmetic: bool
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    sockets: tuple[Socket, ...] = ()
    driver: str = ""


def read_machine() -> Machine:
    """The one that this process runs on, as it is now."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    nvidia, wish = ask_nvml(), os.environ.get(VISIBLE)
    gpus = visible_gpus(nvidia.gpus, wish)
    hidden = f"{VISIBLE}={wish} hides all {len(nvidia.gpus)}" if nvidia.gpus and not gpus else ""
    return Machine(
        cores=cores,
        memory=_meminfo("MemTotal"),
        available_memory=_available_memory(),
        bfloat16_arithmetic=_has_bfloat16_arithmetic(),
        gpus=gpus,
        gpu_problem=hidden or nvidia.problem or package_problem(),
        sockets=read_sockets(cores),
        driver=nvidia.driver,
    )


def read_sockets(cores: Sequence[int], system: Path = NUMA_NODES) -> tuple[Socket, ...]:
    """Those that have some of these cores, by number; none where the system doesn't tell."""
    found = []
    for node in system.glob("node[0-9]*"):
        try:
            there = _listed(((node / "cpulist").read_text()).strip())
        except OSError:
            continue
        own = tuple(core for core in cores if core in there)
        if own:
            found.append(Socket(int(node.name.removeprefix("node")), own))
    return tuple(sorted(found, key=lambda socket: socket.number))


def _listed(text: str) -> set[int]:
    """Of `0-3,8`, as the kernel lists cores."""
    ranges = (part.partition("-") for part in text.split(",") if part)
    return {core for first, _, last in ranges for core in range(int(first), int(last or first) + 1)}


def _available_memory() -> int:
    available = _meminfo("MemAvailable")
    limit = _cgroup_limit()
    return available if limit is None else min(available, limit)


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/meminfo has no {name}")


def _cgroup_limit() -> int | None:
    """The memory that a cgroup v2 limit leaves, None without such a limit."""
    try:
        maximum = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        current = Path("/sys/fs/cgroup/memory.current").read_text().strip()
    except OSError:
        return None
    return None if maximum == "max" else max(0, int(maximum) - int(current))


def _has_bfloat16_arithmetic() -> bool:
    return any(
        key.strip() in ("flags", "Features") and _BFLOAT16_FLAGS & set(value.split())
        for key, _, value in (
            line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()
        )
    )
