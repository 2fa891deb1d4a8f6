"""What the machine is, and what it can do at all: the limits that all else is compared with."""

from typing import Any

import torch

from gpu.bench import Bench


def run(bench: Bench) -> dict[str, Any]:
    """Bandwidth in bytes a second, of reads and writes together; rates in operations a second."""
    return {"copy": copy_rate(bench), "gemm": gemm_rate(bench)}


def copy_rate(bench: Bench) -> float:
    """Of a copy of 2 GiB."""
    numbers = bench.size(1 << 29, 1 << 12)
    source = torch.ones(numbers, device=bench.device.torch)
    to = torch.empty_like(source)
    return 2 * source.nbytes / bench.seconds(lambda: to.copy_(source))


def gemm_rate(bench: Bench) -> float:
    """Of a product of two square matrices in the dtype that is served."""
    n = bench.size(8192, 64)
    a, b = (torch.randn(n, n, device=bench.device.torch).to(bench.dtype) for _ in range(2))
    return 2 * n**3 / bench.seconds(lambda: a @ b)
