"""Attention over a paged cache: in which tiles, and over how many programs."""

from typing import Any, NamedTuple

from torch import Tensor, float32

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.kernels.attention.joining import join
from megainfer.compute.gpu.kernels.attention.paged_attention import attend
from megainfer.compute.gpu.kernels.attention.segments import Programs, Segments, segments_of
from megainfer.compute.gpu.kernels.attention.softmax import LOG2_E
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import power_of_two
from megainfer.compute.gpu.tile_shape import is_large
from megainfer.compute.reference.kernels import Scoring
from megainfer.device import Device

_STAGES = 5
"""Of the pipeline: two tiles are on their way while blocks of the next two are looked up."""


class Queries(NamedTuple):
    """What the T rows of a step attend with.

    q: [T, H, d]. positions: int64 [T]; a row at -1 is padding, and attends to nothing. gates: None
    where the output isn't gated, else [T, *], of each row [H, 2, d] and more, where a head's gate
    stands behind its query.
    """

    q: Tensor
    positions: Tensor
    gates: Tensor | None = None


class _Tiles(NamedTuple):
    """rows: of the tile of queries, with all heads that share a key. keys: of the tile of keys."""

    rows: int
    keys: int
    channels: int
    warps: int


def paged_attention(
    device: Device,
    queries: Queries,
    caches: tuple[Tensor, Tensor],
    span: Span,
    scoring: Scoring,
    out: Tensor,
    invariant: bool = False,
) -> None:
    """Fill the span's rows of out [T, H * d]; the caches [N, B, Hkv, d] have its tokens already.

    Scores and sums are float32. invariant: tiles and segments are the same for any step, so that a
    row's result is the same bits whatever it is computed with.
    """
    (_, heads, head_dim), (_, block, kv_heads, _) = queries.q.shape, caches[0].shape
    group, single = heads // kv_heads, span.most_rows == 1
    tiles = _tiles(device, queries.q, group, span, scoring, invariant)
    tokens = 1 if single else tiles.rows // group
    blocks = span.count if single else span.num_rows // tokens + span.count
    segments = _segments(
        span, tokens, scoring, invariant,
        Programs(
            blocks * kv_heads,
            device.processors * _resident(tiles, invariant),
            span.num_rows * heads * (head_dim + 2) * 4,
        ),
    )  # fmt: skip
    split = segments.programs > 1
    sums_shape = (span.num_rows, segments.programs, heads) if split else (0, 0, 0)
    sums = device.empty((*sums_shape, head_dim), float32)
    states = device.empty((*sums_shape, 2), float32)
    sinks = queries.q if scoring.sinks is None else scoring.sinks
    gates = queries.q if queries.gates is None else queries.gates
    scale = head_dim**-0.5 if scoring.scale is None else scoring.scale
    common: dict[str, Any] = {
        "SINKS": scoring.sinks is not None, "GATED": queries.gates is not None,
        "WINDOW": scoring.window, "CHUNK": scoring.chunk,
        "H": heads, "D": head_dim, "CHANNELS": tiles.channels,
    }  # fmt: skip
    launch(
        device, attend, (blocks, kv_heads, segments.programs),
        queries.q, *caches, queries.positions, span.row_starts, span.block_table, sinks, gates,
        out, sums, states,
        span.rows.start, span.count, span.block_table.stride(0), gates.stride(0),
        scale * LOG2_E.value, segments.length, segments.programs,
        **common, SINGLE=single, SPLIT=split, JOINED=invariant, HKV=kv_heads, BLOCK=block,
        ROWS=tiles.rows, TILE=tiles.keys, num_warps=tiles.warps, num_stages=_STAGES,
        writes=(sums, states) if split else (out,),
    )  # fmt: skip
    if split:
        join(
            device, (sums, states, queries.positions, sinks, gates, out), span.rows,
            gates.stride(0), segments, common,
        )  # fmt: skip


def _tiles(
    device: Device, q: Tensor, group: int, span: Span, scoring: Scoring, invariant: bool
) -> _Tiles:
    """Keys, and values, of a tile take up to 16 KiB, and large tiles' scores and sums registers
    without spilling."""
    channels = max(16, power_of_two(q.shape[2]))
    wide = channels * q.itemsize
    rows = max(16, power_of_two(group))  # of a tensor core's product
    if invariant:
        # Beside a segment's sums there are those of the ones before it.
        rows, keys = max(rows, min(64, 8192 // channels)), 32
    else:
        most, asked = 128 if wide <= 256 else 64, power_of_two(group * span.most_rows)
        rows = max(rows, min(most, asked))
        keys = 64 if rows < 128 else min(64, channels // 2)
        if rows == 128 and scoring.chunk is not None and not is_large(device.chip.architecture):
            keys = min(keys, 32)  # another comparison takes registers, too
    keys = max(16, min(keys, 16384 // wide))
    warps = rows * channels // (1024 if invariant else 2048)
    return _Tiles(rows, keys, channels, min(max(4, warps), 8))


def _resident(tiles: _Tiles, invariant: bool) -> int:
    """Programs that a multiprocessor has registers and shared memory for (docs/kernels-gpu.md)."""
    if tiles.warps > 4 and not invariant:
        return 1
    return 3 if tiles.channels <= 128 else 2


def _segments(
    span: Span, tokens: int, scoring: Scoring, invariant: bool, programs: Programs
) -> Segments:
    """tokens: of each program."""
    limits = [limit for limit in (scoring.window, scoring.chunk) if limit is not None]
    reach = min([span.context, *(limit + tokens - 1 for limit in limits)])
    return segments_of(span.context, reach, programs, invariant)
