"""Latent attention's kernel beside what the cores can do at all, in the same run.

    python benchmarks/latent_attention.py --cache-dtype bfloat16
    python benchmarks/latent_attention.py --heads 16 --sequences 8 --threads 2

A case is one layer's `attend` for a row of as many sequences. All heads attend to the same cached
rows, so that arithmetic and not memory is the limit but for few heads. What the context costs is
the time over the same rows without one. Columns:

    attend    ms of the whole call: norm to residual
    paged     ms that the context adds
    GB/s      cached rows read once in that time; of read: as a share of the limit
    GFLOP/s   scores and sums, 2 (2 R + r) a head and cached row; of gemm: as a share of the limit

Limits as in attention.py: `read` sums floats on as many bytes (16 MiB at least), `gemm` is torch's
float32 product.
"""

import argparse
import math
from statistics import median

import torch
from kernels import GEMM_SIZE, multiplier, reader, seconds
from measures import hardware
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.attention import AttentionKernel, step_rows
from megainfer.compute.cpu.kernels.attention_layer import latent_block_shape
from megainfer.compute.cpu.kernels.experts import on_large_pages
from megainfer.compute.cpu.kernels.latent import LatentKernel, LatentWeights, pack_latent
from megainfer.compute.cpu.kernels.threads import Threads
from megainfer.compute.kv_cache import CACHE_DTYPES
from megainfer.compute.reference.kernels import rotary_table
from megainfer.config import BLOCK_SIZE
from megainfer.models.spec import MlaSpec, RopeSpec

HIDDEN = 512  # small: its projections are not what is measured
SMALLEST_READ = 16 << 20


class Layer:
    """Latent attention of these sizes with random weights."""

    def __init__(self, options: argparse.Namespace, positions: int) -> None:
        threads = Threads(options.threads)
        kernel = AttentionKernel(threads, options.level)
        self.spec = spec = MlaSpec(
            options.heads, options.rank, None, 128, 64, 128, RopeSpec(1e4), 192**-0.5
        )
        self.kernel = LatentKernel(kernel, threads)

        def heads(outputs: int, inputs: int) -> list[Tensor]:
            return [_matrix(outputs, inputs)] * spec.num_heads

        weights = LatentWeights(
            q_down=None,
            q=kernel.pack(_matrix(spec.q_size, HIDDEN), options.weights),
            kv_down=kernel.pack(_matrix(spec.latent_dim, HIDDEN), options.weights),
            out=kernel.pack(_matrix(HIDDEN, spec.num_heads * spec.v_dim), options.weights),
            key_up=self.kernel.pack_heads(heads(spec.kv_lora_rank, 128), options.weights),
            value_up=self.kernel.pack_heads(heads(128, spec.kv_lora_rank), options.weights),
            norm=torch.ones(HIDDEN),
            q_norm=None,
            kv_norm=torch.ones(spec.kv_lora_rank),
            rotary=rotary_table(spec.rope, spec.rope_dim, positions, torch.float32),
        )
        self.packed = pack_latent(weights, spec, eps=1e-6, residual=1.0)


class Case:
    """`sequences` rows, each with `context` tokens before it."""

    def __init__(self, layer: Layer, sequences: int, context: int, cache: Tensor) -> None:
        self._layer, self._cache = layer, cache
        self._batch, self._bare = _batch(sequences, context), _batch(sequences, 0)
        self._x = torch.randn(sequences, HIDDEN)
        rows, spec = sequences * context, layer.spec
        self.flops = 2 * rows * spec.num_heads * (spec.kv_lora_rank + spec.latent_dim)
        self.cached_bytes = rows * cache[0].nbytes // BLOCK_SIZE

    def attend(self) -> None:
        self._run(self._batch)

    def bare(self) -> None:
        self._run(self._bare)

    def _run(self, batch: StepBatch) -> None:
        layer = self._layer
        layer.kernel.attend(layer.packed, step_rows(batch), self._cache, self._x)


def _batch(sequences: int, context: int) -> StepBatch:
    each = context // BLOCK_SIZE + 1
    return build_batch(
        [
            ChunkInput([0], context, [s * each + b for b in range(each)], False)
            for s in range(sequences)
        ]
    )


def _matrix(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs) / math.sqrt(inputs)


def _cache(blocks: int, spec: MlaSpec, dtype: torch.dtype) -> Tensor:
    size = (blocks, *latent_block_shape(spec, dtype))
    memory = on_large_pages(torch.Size(size).numel() * dtype.itemsize).view(dtype).view(size)
    if dtype.itemsize > 1:
        return memory.normal_()
    memory.view(torch.uint8).random_(0x30, 0x40)  # of scales too: normal numbers
    return memory


def measure(case: Case, options: argparse.Namespace) -> list[str]:
    """A line of the table, less the case's own columns."""
    read_bytes = max(case.cached_bytes, SMALLEST_READ)
    works = [
        reader(read_bytes, options.threads),
        multiplier(options.threads),
        case.attend,
        case.bare,
    ]
    rounds = [[seconds(work) for work in works] for _ in range(options.rounds + 1)][1:]
    read, gemm, attend, bare = (median(samples) for samples in zip(*rounds, strict=True))
    paged = max(attend - bare, 1e-9)
    rate, flops = case.cached_bytes / paged, case.flops / paged
    return [
        f"{1e3 * attend:.3f}",
        f"{1e3 * paged:.3f}",
        f"{rate / 1e9:.2f}",
        f"{rate / (read_bytes / read):.0%}",
        f"{flops / 1e9:.0f}",
        f"{flops / (2 * GEMM_SIZE**3 / gemm):.0%}",
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=128)
    parser.add_argument("--rank", type=int, default=512)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--weights", default="bfloat16", help="float32, bfloat16 or int8")
    parser.add_argument("--cache-dtype", default="bfloat16", help="float32, bfloat16, int8 or fp8")
    parser.add_argument("--threads", type=int, default=1, help="of kernels and limits alike")
    parser.add_argument("--level", help="an instruction set; the best if left out")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)  # else its threads' spinning is measured with everything after it
    layer = Layer(options, max(options.context) + 1)
    most = max(options.sequences) * (max(options.context) // BLOCK_SIZE + 1)
    cache = _cache(most, layer.spec, CACHE_DTYPES[options.cache_dtype])
    table = Table(
        title=f"{options.heads} heads x {options.rank} + 64, {options.weights} weights, "
        f"{options.cache_dtype} cache, {options.level or library.levels()[-1]}, threads: "
        f"{options.threads}; medians of {options.rounds} interleaved rounds"
    )
    headings = "sequences", "context", "attend", "paged", "GB/s", "of read", "GFLOP/s", "of gemm"
    for heading in headings:
        table.add_column(heading, justify="right")
    for context in options.context:
        for sequences in options.sequences:
            case = Case(layer, sequences, context, cache)
            table.add_row(str(sequences), str(context), *measure(case, options))
    console = Console(width=110)
    console.print(hardware())
    console.print(table)


if __name__ == "__main__":
    main()
