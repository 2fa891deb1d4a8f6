"""An attention half's kernels beside what the cores can do at all, in the same run.

    python benchmarks/attention.py
    python benchmarks/attention.py --hidden 1024 --heads 16 --cache-dtype bfloat16 --weights int8
    python benchmarks/attention.py --context 4095 --cache-dtype bfloat16 int8 fp8

Rounds go through a case in all dtypes of the cache and the limits in turn, and the table shows
medians, since others may use the machine. A case is one layer's `attend` for rows of as many
sequences, or for one prompt from its beginning. Columns:

    attend    ms of the whole call: norm to residual
    linear    ms of its two projections alone, and GFLOP/s; of gemm: as a share of the limit
    paged     ms of what is left: norms, rotation, KV write, attention
    GB/s      cached keys and values read once in that time; of read: as a share of the limit

Limits: `read` sums floats on as many bytes as are cached (once 16 MiB at least); `gemm` is torch's
float32 product of two 2048 x 2048 matrices, in equal shares on as many threads.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from kernels import GEMM_SIZE, multiplier, reader, seconds
from measures import hardware
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.attention import AttentionKernel, step_rows
from megainfer.compute.cpu.kernels.attention_layer import (
    AttentionWeights,
    block_shape,
    pack_attention,
)
from megainfer.compute.cpu.kernels.experts import on_large_pages
from megainfer.compute.cpu.kernels.packed import pack_norm
from megainfer.compute.kv_cache import CACHE_DTYPES
from megainfer.compute.reference.kernels import rotary_table
from megainfer.config import BLOCK_SIZE
from megainfer.models.spec import CACHE_FORMATS, AttentionSpec, NormSpec, QkNorm, RopeSpec

SMALLEST_READ = 16 << 20


@dataclass(frozen=True)
class Result:
    """One case: medians. Times in ms, rates in 1e9 a second."""

    cache: str
    sequences: int
    context: int
    tokens: int
    attend_ms: float
    linear_ms: float
    paged_ms: float
    gigaflops: float
    gigabytes: float
    read: float
    gemm: float


class Case:
    """`sequences` with `tokens` rows each, `context` tokens before them."""

    def __init__(
        self, options: argparse.Namespace, kept: str, sequences: int, context: int, tokens: int
    ):
        self.kept, self.sequences, self.context, self.tokens = kept, sequences, context, tokens
        self._kernel = AttentionKernel(options.threads, options.level)
        d, heads, kv_heads = options.head_dim, options.heads, options.kv_heads
        outputs = (heads + 2 * kv_heads) * d
        self._qkv = self._kernel.pack(_matrix(outputs, options.hidden), options.weights)
        self._out = self._kernel.pack(_matrix(options.hidden, heads * d), options.weights)
        norm, rope = NormSpec(1e-6), RopeSpec(1e6)
        self._layer = pack_attention(
            AttentionWeights(
                self._qkv,
                self._out,
                pack_norm(torch.ones(options.hidden), norm),
                pack_norm(torch.ones(d), norm),
                pack_norm(torch.ones(d), norm),
                rotary_table(rope, d, context + tokens, torch.float32),
            ),
            AttentionSpec(heads, kv_heads, d, rope, qk_norm=QkNorm.HEAD, window=options.window),
        )
        each = -(-(context + tokens) // BLOCK_SIZE)
        self._batch = build_batch(
            [
                ChunkInput([0] * tokens, context, [s * each + b for b in range(each)], False)
                for s in range(sequences)
            ]
        )
        dtype = CACHE_DTYPES[kept]
        self._cache = _cache((sequences * each, *block_shape(kv_heads, d, dtype)), dtype)
        rows = sequences * tokens
        self._x = torch.randn(rows, options.hidden)
        self._context = torch.randn(rows, heads * d)
        self.linear_flops = 2 * rows * options.hidden * (outputs + heads * d)
        token = AttentionSpec(heads, kv_heads, d, rope).cached_bytes(CACHE_FORMATS[kept])
        self.cached_bytes = sequences * (context + tokens) * token

    def attend(self) -> None:
        step = step_rows(self._batch)
        self._kernel.attend(self._layer, step, self._cache, self._x)

    def linear(self) -> None:
        self._kernel.linear(self._qkv, self._x)
        self._kernel.linear(self._out, self._context)


def _matrix(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs) / math.sqrt(inputs)


def _cache(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = torch.Size(size).numel()
    memory = on_large_pages(count * dtype.itemsize).view(dtype).view(size)
    if dtype.itemsize > 1:
        return memory.normal_()
    memory.view(torch.uint8).random_(0x30, 0x40)  # of scales too: normal numbers
    return memory


def measure(cases: Sequence[Case], options: argparse.Namespace) -> list[Result]:
    """Of cases that differ in what the cache is in."""
    read_bytes = max(SMALLEST_READ, *(case.cached_bytes for case in cases))
    works: list[Callable[[], object]] = [
        reader(read_bytes, options.threads),
        multiplier(options.threads),
        *(work for case in cases for work in (case.attend, case.linear)),
    ]
    rounds = [[seconds(work) for work in works] for _ in range(options.rounds + 1)][1:]
    read, gemm, *each = (median(samples) for samples in zip(*rounds, strict=True))
    limits = read_bytes / read / 1e9, 2 * GEMM_SIZE**3 / gemm / 1e9
    return [
        result_of(case, attend, linear, limits)
        for case, attend, linear in zip(cases, each[::2], each[1::2], strict=True)
    ]


def result_of(case: Case, attend: float, linear: float, limits: tuple[float, float]) -> Result:
    """attend, linear: seconds. limits: rates of reading and of products."""
    paged = max(attend - linear, 1e-9)
    return Result(
        cache=case.kept,
        sequences=case.sequences,
        context=case.context,
        tokens=case.tokens,
        attend_ms=1e3 * attend,
        linear_ms=1e3 * linear,
        paged_ms=1e3 * paged,
        gigaflops=case.linear_flops / linear / 1e9,
        gigabytes=case.cached_bytes / paged / 1e9,
        read=limits[0],
        gemm=limits[1],
    )


def table_of(results: list[Result], title: str) -> Table:
    table = Table(title=title)
    table.add_column("cache")
    headings = "sequences", "context", "tokens", "attend", "linear", "GFLOP/s", "of gemm"
    for heading in (*headings, "paged", "GB/s", "of read"):
        table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            r.cache,
            *(str(value) for value in (r.sequences, r.context, r.tokens)),
            f"{r.attend_ms:.3f}",
            f"{r.linear_ms:.3f}",
            f"{r.gigaflops:.0f}",
            f"{r.gigaflops / r.gemm:.0%}",
            f"{r.paged_ms:.3f}",
            f"{r.gigabytes:.1f}",
            f"{r.gigabytes / r.read:.0%}",
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--window", type=int, help="positions that a token sees; all if left out")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--context", type=int, nargs="+", default=[127, 1023])
    parser.add_argument("--prompt", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument(
        "--cache-dtype", nargs="+", default=["float32"], help="float32, bfloat16, int8, fp8"
    )
    parser.add_argument("--threads", type=int, default=1, help="of kernels and limits alike")
    parser.add_argument("--level", help="an instruction set; the best if left out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)  # else its threads' spinning is measured with everything after it
    shapes = [(s, context, 1) for context in options.context for s in options.sequences]
    shapes += [(1, 0, tokens) for tokens in options.prompt]
    results = [
        result
        for shape in shapes
        for result in measure(
            [Case(options, kept, *shape) for kept in options.cache_dtype], options
        )
    ]
    level = options.level or library.levels()[-1]
    title = (
        f"hidden {options.hidden}, heads {options.heads} / {options.kv_heads} x "
        f"{options.head_dim}, window {options.window}, {options.weights} weights, "
        f"{level}, threads: {options.threads}; "
        f"medians of {options.rounds} interleaved rounds"
    )
    console = Console(width=110)
    console.print(hardware())
    console.print(table_of(results, title))
    if options.json:
        document = {
            "hardware": hardware(),
            "level": level,
            "results": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
