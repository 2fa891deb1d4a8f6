"""What CUDA graphs cost and save: a stage of a layer is about a dozen small kernels."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

KERNELS, REPEATS = 12, 100
LAYERS, BUCKETS = 48, 12


def latency() -> dict[str, float]:
    """Seconds of a stage until it is done, and of giving it alone, by kernels and as a graph."""
    x = torch.zeros(4096, device="cuda")
    graph = _captured(x)
    found = dict[str, float]()
    for name, stage in (("kernels", lambda: _stage(x)), ("graph", graph.replay)):
        given, done = zip(*(_times(stage) for _ in range(REPEATS)), strict=True)
        found |= {f"{name}_given": median(given), f"{name}_done": median(done)}
    return found


def many() -> dict[str, float]:
    """Seconds and bytes that a graph a layer and bucket takes."""
    x = torch.zeros(4096, device="cuda")
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    started = perf_counter()
    graphs = [_captured(x) for _ in range(LAYERS * BUCKETS)]
    torch.cuda.synchronize()
    seconds = perf_counter() - started
    return {
        "graphs": len(graphs),
        "seconds": seconds,
        "bytes": free - torch.cuda.mem_get_info()[0],
    }


def _captured(x: torch.Tensor) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    _stage(x)  # kernels are loaded before they are captured
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        _stage(x)
    return graph


def _stage(x: torch.Tensor) -> None:
    for _ in range(KERNELS):
        x.add_(1)


def _times(stage: Callable[[], object]) -> tuple[float, float]:
    torch.cuda.synchronize()
    started = perf_counter()
    stage()
    given = perf_counter() - started
    torch.cuda.synchronize()
    return given, perf_counter() - started
