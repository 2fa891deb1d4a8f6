"""The machine and the versions that a result belongs to."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from measures import hardware

PACKAGES = ("torch", "triton", "numpy", "safetensors", "cuda-bindings", "nvidia-nccl-cu13")


def machine(dry: bool) -> dict[str, Any]:
    """Raises RuntimeError where there is no GPU, unless it is a dry run."""
    found: dict[str, Any] = {
        "hardware": hardware(),
        "kernel": platform.release(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
    }
    if dry:
        return found
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no GPU here; --dry tries the suite without one")
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "bytes": properties.total_memory,
        "processors": properties.multi_processor_count,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
