"""The kernels of the CPU backend by shape: what so many rows of each kind of work take.

All weights together are larger than caches, and calls take them in turn, since a step comes back to
a layer's weights only after all the others. The values of weights and rows don't matter to what
they take, as long as they are ordinary numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from megainfer.calibration.caches import places, working_set
from megainfer.calibration.timing import Work, in_turn
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.attention import AttentionKernel, step_rows
from megainfer.compute.cpu.kernels.attention_layer import (
    AttentionWeights,
    PackedAttention,
    block_shape,
    pack_attention,
)
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel, on_large_pages
from megainfer.compute.cpu.kernels.packed import PackedLinear, pack_norm
from megainfer.compute.cpu.kernels.threads import Threads
from megainfer.compute.experts import ExpertsShape
from megainfer.config import BLOCK_SIZE
from megainfer.memory import stored_bytes
from megainfer.models.spec import AttentionSpec, NormSpec

DTYPES = ("float32", "bfloat16", "int8")
KV_DTYPES = ("float32", "bfloat16")
READING = AttentionSpec(num_heads=16, num_kv_heads=4, head_dim=64, rope=None)
"""Its cache has 1 KiB a token in bfloat16, and four queries read each of its keys."""
CALLED = 128
"""Outputs and inputs of a product that is only a call; int8 has a scale for as many inputs."""
NARROW = 64
"""Channels of its hidden states, so that its products take next to nothing."""
PLACES = 8
"""Of a cache, at which one case reads in turn."""
EXPERTS = ExpertsShape(experts=48, hidden=1024, intermediate=640, top_k=4)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured. working: bytes of weights, or of a cache, that are gone through before any
    is read again: more than the processor's caches hold (those of a server may hold a whole layer).
    product: outputs and inputs. rows: of products, and of one expert in the mean. most_choices:
    rows over all experts of one call, at most, so that a call is a matter of milliseconds. readers:
    (sequences, tokens of context of each)."""

    working: int = field(default_factory=working_set)
    product: tuple[int, int] = (8192, 1024)
    experts: ExpertsShape = EXPERTS
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    most_choices: int = 1024
    readers: tuple[tuple[int, int], ...] = (
        *((1, 256), (1, 1024), (1, 4096)),
        *((8, 512), (8, 4096), (32, 1024)),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """size: what a curve has it by: rows, or bytes. amount: FLOPs, or bytes again. work: does it
    once."""

    size: float
    amount: float
    work: Work


USUAL = Sizes()


def reading(threads: int, size: int) -> Case:
    """Summing floats on large pages in equal shares: the memory's own rate."""
    from concurrent.futures import ThreadPoolExecutor

    memory, each = on_large_pages(size).fill_(0), size // threads
    pool = ThreadPoolExecutor(threads)

    def read(share: int) -> None:
        library.load().megainfer_read(memory.data_ptr() + share * each, each // 4)

    def work() -> None:
        list(pool.map(read, range(threads)))

    return Case(size, size, work)


def products(kernel: AttentionKernel, dtype: str, sizes: Sizes) -> Iterator[Case]:
    """Dense products with weights of this dtype, by rows."""
    outputs, inputs = sizes.product
    weight = torch.full((outputs, inputs), 0.01)
    first = kernel.pack(weight, dtype)
    count = -(-sizes.working // first.panels.numel())
    # All cases go on where the last one was, so that none finds what another has just read.
    turn = cycle([first, *(kernel.pack(weight, dtype) for _ in range(count - 1))])
    for rows in sizes.rows:
        work = partial(_product, kernel, turn, torch.full((rows, inputs), 0.5))
        yield Case(rows, 2.0 * rows * outputs * inputs, work)


def calling(kernel: AttentionKernel, dtype: str) -> Case:
    """A product of next to nothing: what a call takes by itself, which is to be taken off."""
    weight = kernel.pack(torch.full((CALLED, CALLED), 0.01), dtype)
    return Case(1, 1, partial(kernel.linear, weight, torch.full((1, CALLED), 0.5)))


def _product(kernel: AttentionKernel, turn: Iterator[PackedLinear], x: Tensor) -> None:
    kernel.linear(next(turn), x)


def experts(threads: Threads, dtype: str, sizes: Sizes) -> Iterator[Case]:
    """Experts with weights of this dtype, by the mean rows of those that are chosen.

    Rows choose at random, as tokens do: some experts get many rows and some few, which takes longer
    than if all had as many. For one row each there is nothing to choose.
    """
    shape = sizes.experts
    weights = 3 * shape.experts * shape.hidden * shape.intermediate
    count = -(-sizes.working // stored_bytes(weights, dtype))
    kernel = ExpertKernel(shape, dtype, threads)
    # As with products, all cases go on at the layer after the one that was last read.
    turn = cycle([_experts(kernel) for _ in range(count)])
    for tokens, among in _draws(sizes):
        ids = _choices(tokens, among, shape.top_k)
        firsts = range(0, shape.experts - among + 1, among)
        calls = [_expert_call(turn, ids + first, shape.hidden) for first in firsts]
        rows = ids.numel() / len(set(ids.flatten().tolist()))
        yield Case(rows, 6.0 * shape.hidden * shape.intermediate * ids.numel(), in_turn(calls))


def _draws(sizes: Sizes) -> Iterator[tuple[int, int]]:
    """(tokens, experts that they choose among)."""
    top_k, most = sizes.experts.top_k, sizes.experts.experts
    for rows in sizes.rows:
        among = max(top_k, min(most, sizes.most_choices // rows))
        yield max(1, rows * among // top_k), among


def _choices(tokens: int, among: int, top_k: int) -> Tensor:
    """Of each token as many different ones, and of all together where there are as many: int32
    [tokens, top_k]. The same whenever asked."""
    generator = torch.Generator().manual_seed(tokens)
    if tokens * top_k <= among:
        chosen = torch.randperm(among, generator=generator)[: tokens * top_k].view(tokens, top_k)
    else:
        chosen = torch.rand(tokens, among, generator=generator).topk(top_k).indices
    return chosen.to(torch.int32)


def _experts(kernel: ExpertKernel) -> CpuLayerExperts:
    shape = kernel.shape
    layer = CpuLayerExperts(kernel, shape.experts)
    gate_up = torch.full((2 * shape.intermediate, shape.hidden), 0.01)
    down = torch.full((shape.hidden, shape.intermediate), 0.01)
    for expert in range(shape.experts):
        layer.put(expert, layer.prepare(gate_up, down))
    return layer


def _expert_call(turn: Iterator[CpuLayerExperts], ids: Tensor, channels: int) -> Work:
    tokens, top_k = ids.shape
    hidden = torch.full((tokens, channels), 0.5, dtype=torch.bfloat16)
    weights, replies = torch.full((tokens, top_k), 1 / top_k), torch.empty_like(hidden)
    return lambda: next(turn).forward([hidden], [ids], [weights], [replies])


@dataclass(frozen=True, slots=True)
class Reading:
    """Attention over a cache, by the bytes of keys and values that it reads; and what the same
    takes with nothing to read, which is to be taken off."""

    whole: Case
    without: Case


def attention(kernel: AttentionKernel, dtype: str, sizes: Sizes) -> Iterator[Reading]:
    """Over a cache of this dtype."""
    layer, kept = _reading_layer(kernel), getattr(torch, dtype)
    shape = block_shape(READING.num_kv_heads, READING.head_dim, kept)
    token = 2.0 * READING.kv_size * kept.itemsize
    needs = [n * -(-context // BLOCK_SIZE) for n, context in sizes.readers]
    total = max(*needs, int(sizes.working / token / BLOCK_SIZE))
    cache = torch.full((total, *shape), 0.01, dtype=kept)
    for reader, firsts in zip(sizes.readers, places(needs, total, PLACES), strict=True):
        size = reader[0] * reader[1] * token
        without = (reader[0], 1)
        yield Reading(
            Case(size, size, _attend(kernel, layer, cache, reader, firsts)),
            Case(size, size, _attend(kernel, layer, cache, without, firsts)),
        )


def _reading_layer(kernel: AttentionKernel) -> PackedAttention:
    outputs = READING.q_size + 2 * READING.kv_size
    weights = AttentionWeights(
        qkv=kernel.pack(torch.full((outputs, NARROW), 0.01), "float32"),
        out=kernel.pack(torch.full((NARROW, READING.q_size), 0.01), "float32"),
        norm=pack_norm(torch.ones(NARROW), NormSpec(1e-6)),
    )
    return pack_attention(weights, READING)


def _attend(
    kernel: AttentionKernel,
    layer: PackedAttention,
    cache: Tensor,
    reader: tuple[int, int],
    firsts: Sequence[int],
) -> Work:
    """At other blocks of the cache each time."""
    sequences, context = reader
    x = torch.full((sequences, NARROW), 0.5)
    batches = [_batch(sequences, context, first) for first in firsts]
    return in_turn([partial(_attend_once, kernel, layer, cache, batch, x) for batch in batches])


def _attend_once(
    kernel: AttentionKernel, layer: PackedAttention, cache: Tensor, batch: StepBatch, x: Tensor
) -> None:
    kernel.attend(layer, step_rows(batch), cache, x.fill_(0.5))


def _batch(sequences: int, context: int, first: int) -> StepBatch:
    """A token of each sequence, whose blocks lie one after the other from `first` on."""
    blocks = -(-context // BLOCK_SIZE)
    starts = range(first, first + sequences * blocks, blocks)
    chunks = [
        ChunkInput([0], context - 1, [*range(at, at + blocks)], samples=False) for at in starts
    ]
    return build_batch(chunks)
