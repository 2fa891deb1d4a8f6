"""Candidates for tiles of grouped products and of decode attention, beside what is shipped.

All of one layer of Qwen3-30B-A3B. The list `tiles` is what a file of measured tiles has: as
`megainfer/compute/gpu/measured/NAME.json`, NAME being the GPU's, it is what kernels take from then
on. What attention does is settled in its sources.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from gpu.bench import Bench, tried
from gpu.models import QWEN3_30B, small, spec_of
from gpu.sections.experts import layer_of, message_of
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.gpu.experts import GpuLayerExperts
from megainfer.compute.gpu.kernels.attention import paged, segments
from megainfer.compute.gpu.kernels.experts.grouped_ffn import (
    Slots,
    down_product,
    gate_up_product,
    product_of,
)
from megainfer.compute.gpu.kernels.experts.messages import Messages
from megainfer.compute.gpu.kernels.experts.tiles import Sorted, sort_choices
from megainfer.compute.gpu.measured_tiles import Measured, as_entry
from megainfer.compute.gpu.tile_shape import TileShape
from megainfer.compute.reference.kernels import Scoring
from megainfer.config import BLOCK_SIZE
from megainfer.models.spec import AttentionSpec

SHARED_KIB = 227
TOKENS = (1, 128, 256, 512, 2048)
"""Of which 128 experts get at most one row, and 8, 16, 32 and 128 each."""
FEW = ((64, 64, 4, 4), (64, 128, 4, 3), (64, 128, 4, 4), (32, 128, 4, 4), (32, 256, 4, 3))
MANY = ((64, 64, 4, 3), (64, 64, 4, 4), (128, 64, 8, 3), (128, 64, 8, 4))
"""Outputs of gate (of down twice as many), step, warps, stages; for up to 32 rows, and for more."""
WAYS = ((64, 4, 5), (64, 4, 4), (32, 4, 6), (128, 4, 4), (128, 8, 4))
"""Keys of a tile, warps, stages."""
SEQUENCES, CONTEXT = (1, 16, 64), 8192


def run(bench: Bench) -> dict[str, Any]:
    """Of each product, by tokens, and of attention, by sequences: the device's seconds of every
    candidate, the shipped one first, and whether its result is the shipped one's but for
    rounding."""
    found: dict[str, Any] = {"tiles": [], "products": {}, "attention": {}}
    shape, _, layer = layer_of(bench)
    for tokens in TOKENS[: bench.size(len(TOKENS), 1)]:
        for case in _cases(bench, layer, message_of(bench, shape, tokens)):
            name = f"{'gate_up' if case.product.gated else 'down'}, {tokens} tokens"
            found["products"][name] = told = _measured(bench, case)
            if (best := _best(case, told)) is not None:
                found["tiles"].append(as_entry(case.product, best))
            bench.note(found)
    for sequences in SEQUENCES[: bench.size(len(SEQUENCES), 1)]:
        found["attention"][str(sequences)] = _of_attention(bench, sequences)
        bench.note(found)
    return found


class Case(NamedTuple):
    """A product: shipped is its tile, compute gives it with those that are in use by then."""

    product: Measured
    shipped: TileShape
    compute: Callable[[Slots], Tensor]
    slots: Slots


def _cases(bench: Bench, layer: GpuLayerExperts, message: Sequence[Tensor]) -> list[Case]:
    device = bench.device
    hidden, ids, weights, out = ([own] for own in message)
    messages = Messages.of(device, hidden, ids, weights, out, [None])
    slots = layer.slots(layer.memory)._replace(tiles={})
    found = sort_choices(device, messages, slots.addresses, layer.tile_rows(messages))
    x = gate_up_product(device, slots, messages, found)
    up = partial(gate_up_product, device, messages=messages, found=found)
    down = partial(down_product, device, found=found, x=x)
    return [
        _case(bench, slots, found, gated, compute) for gated, compute in ((True, up), (False, down))
    ]


def _case(
    bench: Bench, slots: Slots, found: Sorted, gated: bool, compute: Callable[[Slots], Tensor]
) -> Case:
    matrix = slots.layout.gate_up if gated else slots.layout.down
    product, shipped = product_of(bench.device, slots.shape, matrix, found, bench.dtype)
    return Case(product, shipped, compute, slots)


def _candidates(case: Case) -> list[TileShape]:
    rows, parts = case.product.rows, 2 if case.product.gated else 1
    found = [case.shipped]
    for outputs, step, warps, stages in FEW if rows <= 32 else MANY:
        wide = outputs * 2 // parts
        buffers = stages if rows > 32 else stages - 1  # one more where a product goes on by itself
        shared = buffers * (rows + parts * wide) * step * 2 >> 10
        if case.product.inputs % step == 0 and shared < SHARED_KIB:
            resident = min(3, SHARED_KIB // (shared + 1), 16 // warps)
            found.append(TileShape(rows, wide, step, warps, stages, resident))
    return [*dict.fromkeys(found)]


def _measured(bench: Bench, case: Case) -> list[dict[str, Any]]:
    expected = case.compute(case.slots)
    found = []
    for tile in _candidates(case)[: bench.size(99, 2)]:
        slots = case.slots._replace(tiles={case.product: tile})
        told = tried(partial(_one, bench, partial(case.compute, slots), expected))
        found.append({"tile": as_entry(case.product, tile)["tile"], **told})
    return found


def _one(bench: Bench, compute: Callable[[], Tensor], expected: Tensor) -> dict[str, Any]:
    actual = compute()
    close = torch.isclose(actual.float(), expected.float(), rtol=0.05, atol=0.05)
    share = float(close.float().mean())
    return {"seconds": bench.seconds(bench.recorded(compute)), "same": share > 0.999}


def _best(case: Case, told: Sequence[dict[str, Any]]) -> TileShape | None:
    """None where it is the shipped one, or nothing was right."""
    pairs = zip(_candidates(case), told, strict=False)
    right = [(own["seconds"], n, tile) for n, (tile, own) in enumerate(pairs) if own.get("same")]
    best = min(right, default=None)
    return None if best is None or best[1] == 0 else best[2]


def _of_attention(bench: Bench, sequences: int) -> list[dict[str, Any]]:
    compute, expected = _decodes(bench, sequences)
    found = [{"way": "shipped", **tried(partial(_one, bench, compute, expected))}]
    for keys, warps, stages in WAYS[: bench.size(len(WAYS), 1)]:
        tiles = partial(_tiles_of, keys, warps, paged._tiles)
        with patch.object(paged, "_tiles", tiles), patch.object(paged, "_STAGES", stages):
            told = tried(partial(_one, bench, compute, expected))
        found.append({"way": {"keys": keys, "warps": warps, "stages": stages}, **told})
    for times in (2, 4)[: bench.size(2, 0)]:
        parts = partial(_more_parts, times, segments._parts)
        with patch.object(segments, "_parts", parts):
            told = tried(partial(_one, bench, compute, expected))
        found.append({"way": {"times_as_many_segments": times}, **told})
    return found


def _tiles_of(keys: int, warps: int, usual: Callable[..., Any], *arguments: object) -> Any:
    return usual(*arguments)._replace(keys=keys, warps=warps)


def _more_parts(times: int, usual: Callable[..., int], *arguments: Any) -> int:
    return min(times * usual(*arguments), int(arguments[-1]))


def _decodes(bench: Bench, sequences: int) -> tuple[Callable[[], Tensor], Tensor]:
    """One layer's attention over caches at a long context, without its projections."""
    spec = spec_of(small(QWEN3_30B) if bench.dry else QWEN3_30B).layers[0].attention
    assert isinstance(spec, AttentionSpec)
    context, device = bench.size(CONTEXT, 40), bench.device
    blocks = -(-context // BLOCK_SIZE)
    chunks = [
        ChunkInput([0], context - 1, [*range(n, blocks * sequences, sequences)], True, 0)
        for n in range(sequences)
    ]
    batch = build_batch(chunks, device)
    size = (blocks * sequences, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
    keys, values = (torch.randn(size, device=device.torch).to(bench.dtype) for _ in range(2))
    q = torch.randn(sequences, spec.num_heads, spec.head_dim, device=device.torch).to(bench.dtype)
    queries = paged.Queries(q, batch.positions)
    out = device.empty((sequences, spec.num_heads * spec.head_dim), bench.dtype)

    def compute() -> Tensor:
        for span in batch.spans:
            paged.paged_attention(device, queries, (keys, values), span, Scoring(), out)
        return out

    return compute, compute().clone()
