"""Torch's grouped product where experts have many rows, beside which our own is measured."""

import torch

from gpu.bench import Bench

EXPERTS, ROWS, HIDDEN, INTERMEDIATE = 128, 128, 2048, 768


def beside_torch() -> dict[str, float]:
    """Seconds of both products of a layer's experts, and operations a second; see the section of
    experts for ours."""
    bench = Bench(dry=False)
    ends = torch.arange(1, EXPERTS + 1, dtype=torch.int32, device="cuda") * ROWS
    x, middle = (_numbers(EXPERTS * ROWS, size) for size in (HIDDEN, INTERMEDIATE))
    up = _numbers(EXPERTS, 2 * INTERMEDIATE, HIDDEN).transpose(1, 2)
    down = _numbers(EXPERTS, HIDDEN, INTERMEDIATE).transpose(1, 2)

    def products() -> None:
        torch._grouped_mm(x, up, offs=ends)
        torch._grouped_mm(middle, down, offs=ends)

    seconds = bench.seconds(products)
    return {
        "seconds": seconds,
        "operations": 6 * EXPERTS * ROWS * HIDDEN * INTERMEDIATE / seconds,
    }


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)
