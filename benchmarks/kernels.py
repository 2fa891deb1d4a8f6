"""Kernels beside what one core of this machine can do at all, in the same run.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --hidden 1024 --intermediate 768 --rows 1 32 --json out.json

The experts of one layer are computed with the same number of rows each; take so many that their
weights are larger than the last cache. Rounds go through all
cases and limits in turn, and the table shows medians, since others may use the machine. Columns:

    rows      rows an expert
    ms        one layer's experts
    GB/s      packed weights read once; of read: as a share of the limit below
    GFLOP/s   multiplications and additions of the three products; of gemm: as a share of it
    floor     ms that the slower of the two limits alone would take (above 100 % of a limit, the
              kernel has a faster instruction or a better cache than the limit's own program)

Limits: `read` sums floats on as many bytes as the packed weights have, on pages of the same size.
`gemm` is torch's float32 product of two 2048 x 2048 matrices, in equal shares on as many threads.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from measures import hardware
from rich.console import Console
from rich.table import Table

from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel, on_large_pages
from megainfer.compute.experts import ExpertsShape
from megainfer.config import WEIGHT_DTYPES

GEMM_SIZE = 2048


@dataclass(frozen=True)
class Result:
    """One case: medians. Times in ms, rates in 1e9 a second."""

    weight_dtype: str
    rows: int
    ms: float
    gigabytes: float
    gigaflops: float
    read: float
    gemm: float
    floor_ms: float


class Case:
    """The experts of one layer with `rows` rows each."""

    def __init__(self, layer: CpuLayerExperts, shape: ExpertsShape, rows: int, dtype: torch.dtype):
        self.rows = rows
        count = -(-rows * shape.experts // shape.top_k)
        choices = torch.arange(count * shape.top_k, dtype=torch.int32) % shape.experts
        self.flops = 6 * shape.hidden * shape.intermediate * len(choices)
        x = torch.randn(count, shape.hidden).to(dtype)
        ids = choices.view(count, shape.top_k)
        message = (x, ids, torch.rand(ids.shape), torch.empty_like(x))
        self._layer = layer
        self._slots = [[tensor] for tensor in message]

    def run(self) -> None:
        self._layer.forward(*self._slots)


def build_layer(kernel: ExpertKernel) -> CpuLayerExperts:
    """The same weights for all, each in memory of its own: quantising takes long."""
    shape = kernel.shape
    layer = CpuLayerExperts(kernel, shape.experts)
    gate_up = torch.randn(2 * shape.intermediate, shape.hidden)
    first = layer.prepare(gate_up, torch.randn(shape.hidden, shape.intermediate))
    layer.put(0, first)
    for expert in range(1, shape.experts):
        own = kernel.free_memory.pop()
        for part, filled in ((own.gate_up, first.gate_up), (own.down, first.down)):
            part.copy_(filled)
        layer.put(expert, own)
    return layer


def seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def reader(num_bytes: int, threads: int) -> Callable[[], object]:
    """Reads as many bytes, in equal shares."""
    memory, each = on_large_pages(num_bytes).fill_(0), num_bytes // threads
    pool = ThreadPoolExecutor(threads)

    def read(share: int) -> None:
        library.load().megainfer_read(memory.data_ptr() + share * each, each // 4)

    return lambda: read(0) if threads == 1 else list(pool.map(read, range(threads)))


def multiplier(threads: int) -> Callable[[], object]:
    """Multiplies two matrices, the first one's rows in equal shares.

    On threads that sleep when they are done: torch's own would spin for a while, on a core that
    whatever is measured next is to have.
    """
    a, b = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    shares = a.chunk(threads)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    return lambda: a @ b if threads == 1 else list(pool.map(b.__rmatmul__, shares))


def measure(weight_dtype: str, options: argparse.Namespace) -> list[Result]:
    """All numbers of rows with weights of one dtype."""
    shape = ExpertsShape(options.experts, options.hidden, options.intermediate, options.top_k)
    kernel = ExpertKernel(shape, weight_dtype, options.threads, options.level)
    layer, dtype = build_layer(kernel), getattr(torch, options.dtype)
    cases = [Case(layer, shape, rows, dtype) for rows in options.rows]
    num_bytes = shape.experts * (kernel.gate_up_bytes + kernel.down_bytes)
    works = [
        reader(num_bytes, options.threads),
        multiplier(options.threads),
        *(case.run for case in cases),
    ]
    rounds = [[seconds(work) for work in works] for _ in range(options.rounds + 1)][1:]
    read, gemm, *times = (median(samples) for samples in zip(*rounds, strict=True))
    bandwidth, rate = num_bytes / read / 1e9, 2 * GEMM_SIZE**3 / gemm / 1e9
    return [
        Result(
            weight_dtype=weight_dtype,
            rows=case.rows,
            ms=1e3 * time,
            gigabytes=num_bytes / time / 1e9,
            gigaflops=case.flops / time / 1e9,
            read=bandwidth,
            gemm=rate,
            floor_ms=max(num_bytes / bandwidth, case.flops / rate) / 1e6,
        )
        for case, time in zip(cases, times, strict=True)
    ]


def table_of(results: list[Result], title: str) -> Table:
    table = Table(title=title)
    headings = "weights", "rows", "ms", "GB/s", "of read", "GFLOP/s", "of gemm", "floor"
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "weights" else "right")
    for r in results:
        table.add_row(
            r.weight_dtype,
            str(r.rows),
            f"{r.ms:.3f}",
            f"{r.gigabytes:.1f}",
            f"{r.gigabytes / r.read:.0%}",
            f"{r.gigaflops:.0f}",
            f"{r.gigaflops / r.gemm:.0%}",
            f"{r.floor_ms:.3f}",
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--weights", nargs="+", default=list(WEIGHT_DTYPES))
    parser.add_argument("--dtype", default="float32", help="of rows: float32 or bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="of kernels and limits alike")
    parser.add_argument("--level", help="an instruction set; the best if left out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)  # else its threads' spinning is measured with everything after it
    level = options.level or library.levels()[-1]
    results = [result for name in options.weights for result in measure(name, options)]
    title = (
        f"{options.experts} experts {options.hidden} x {options.intermediate}, {options.dtype} "
        f"rows, {level}, threads: {options.threads}; medians of {options.rounds} interleaved rounds"
    )
    console = Console(width=110)
    console.print(hardware())
    console.print(table_of(results, title))
    limits = sorted({(r.weight_dtype, r.read, r.gemm) for r in results})
    for name, read, gemm in limits:
        console.print(f"limits beside {name}: read {read:.1f} GB/s, gemm {gemm:.0f} GFLOP/s")
    if options.json:
        document = {
            "hardware": hardware(),
            "level": level,
            "threads": options.threads,
            "results": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
