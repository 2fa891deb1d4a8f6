"""What a bug report needs to know of software and machine."""

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from megainfer import m2n
from megainfer.compute.cpu.kernels import library
from megainfer.config import format_bytes
from megainfer.launch.machine import Machine, read_machine
from megainfer.native.library import find_library

GPU_SECONDS = 10.0
TOLD_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
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
    yield from _gpus()
    yield _line("kernels", _kernels())
    yield _line("M2N", "native" if find_library(Path(m2n.__file__).parent) else NOT_BUILT)
    yield from (_line("package", text) for text in _packages())


def _cpu(machine: Machine) -> Iterator[str]:
    fields = _cpu_fields()
    yield _line("CPU", fields.get("model name", platform.processor() or "?"))
    yield _line("cores", f"{len(machine.cores)} usable")
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    yield _line(
        "CPU flags", " ".join(flag for flag in TOLD_FLAGS if flag in flags) or "none of ours"
    )


def _cpu_fields() -> dict[str, str]:
    """Of the first core."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _kernels() -> str:
    return f"cpu, {' '.join(library.levels())}" if library.is_built() else NOT_BUILT


def _gpus() -> Iterator[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        yield _line("GPU", "none (no nvidia-smi)")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=GPU_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield _line("GPU", f"nvidia-smi failed: {error}")
        return
    for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines():
        yield _line("GPU", line.strip())


def _packages() -> Iterator[str]:
    """Every dependency, the optional ones that are installed too."""
    names = {re.split(r"[^A-Za-z0-9._-]", text)[0] for text in requires("megainfer") or []}
    for name in sorted(names, key=str.lower):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not installed"


def _line(subject: str, text: str) -> str:
    return f"{subject:<10} {text}"
