"""What this machine has: cores that we may use, memory that is free. Linux."""

import os
from pathlib import Path

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def usable_cores() -> tuple[int, ...]:
    """Cores that this process may run on, ascending."""
    return tuple(sorted(os.sched_getaffinity(0)))


def total_memory() -> int:
    """Bytes that the machine has."""
    return _meminfo("MemTotal")


def available_memory() -> int:
    """Bytes that new processes can take: what the kernel deems available, within the cgroup."""
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


def has_bfloat16_arithmetic() -> bool:
    """Whether the cores multiply bfloat16 natively (AVX-512 BF16, AMX, or Arm's BF16)."""
    return any(
        key.strip() in ("flags", "Features") and _BFLOAT16_FLAGS & set(value.split())
        for key, _, value in (
            line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()
        )
    )
