"""What the instruments share: the machine in a line, and what a node's counters say of a time."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

T_A_KINDS = ("combine", "attention", "dispatch", "shared")
T_E_KINDS = ("expert", "reply")


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "?")
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}"


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Of each counter that is a number."""
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if isinstance(value, int | float)
    }


def of_role(counters: Mapping[str, dict[str, float]], role: str) -> list[dict[str, float]]:
    return [own for name, own in counters.items() if name.startswith(role)]


def mean_of(nodes: Sequence[Mapping[str, float]], kinds: Sequence[str], occurrence: str) -> float:
    """Seconds of these kinds of work for one occurrence of the last."""
    seconds = sum(own.get(f"{kind}_seconds", 0.0) for own in nodes for kind in kinds)
    count = sum(own.get(f"{occurrence}_count", 0) for own in nodes)
    return seconds / count if count > 0 else 0.0


def mean_transfer(nodes: Sequence[Mapping[str, float]]) -> float:
    """Seconds; NaN when no message found its receiver waiting, as in one process."""
    count = sum(own["transfers"] for own in nodes)
    return sum(own["transfer_ns"] for own in nodes) / count / 1e9 if count > 0 else float("nan")


def idle_share(nodes: Sequence[Mapping[str, float]], seconds: float) -> float:
    """The share of this time in which the nodes had nothing to do."""
    return 1 - sum(own["busy_seconds"] for own in nodes) / seconds / len(nodes)
