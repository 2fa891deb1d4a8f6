"""Keys, values and latents cached in eight bits: the codes are the formulas', and what attends to
them is the reference over the numbers that they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.models.spec import AttentionSpec, QkNorm, QueryTemperature
from tests.support.cache_codes import Codes, quantised
from tests.support.kernel_attention import (
    ROPE,
    Layer,
    Shape,
    batch_of,
    packed_codes,
    unpacked_cache,
    unpacked_codes,
)
from tests.support.kernel_experts import levels, relative_error
from tests.support.kernel_latent import LatentLayer, packed_latents, run, shape

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

every_level = pytest.mark.parametrize("level", levels())
INT8, FP8 = torch.int8, torch.float8_e4m3fn
both_dtypes = pytest.mark.parametrize("dtype", [INT8, FP8], ids=["int8", "fp8"])

SHAPES = {
    "plain": Shape(64, AttentionSpec(10, 2, 80, ROPE)),
    "odd_group": Shape(40, AttentionSpec(13, 1, 128, ROPE)),
    "head_norm": Shape(48, AttentionSpec(4, 2, 16, ROPE, qk_norm=QkNorm.HEAD)),
    "four_channels": Shape(33, AttentionSpec(3, 3, 4, ROPE)),
    "scale_sinks": Shape(40, AttentionSpec(6, 2, 20, ROPE, scale=0.4, sinks=True)),
    "window": Shape(40, AttentionSpec(6, 2, 20, ROPE, window=37)),
    "window_sinks": Shape(40, AttentionSpec(8, 2, 16, ROPE, window=64, sinks=True)),
    "chunk": Shape(40, AttentionSpec(6, 2, 20, ROPE, chunk=48)),
    "no_positions": Shape(40, AttentionSpec(4, 2, 16, None, temperature=QueryTemperature(9, 0.7))),
}
LATENTS = [
    (shape(4, 20, 10, 6, 14, q_lora_rank=18, bias=True), 48),
    (shape(13, 33, 7, 2, 5, interleaved=False), 50),
    (shape(2, 300, 16, 16, 16), 33),
]
# Decodes, beginnings and later chunks of prompts; around the ends of tiles, blocks and words.
CHUNKS = [(0, 1), (15, 1), (17, 1), (34, 1), (50, 1), (70, 1), (0, 5), (63, 1), (62, 4), (10, 130)]
GARBAGE = {INT8: -128, FP8: 0x7F}
"""As int8: of float8 a NaN."""


def assert_same(actual: Codes, expected: Codes) -> None:
    assert torch.equal(actual.scales, expected.scales)
    assert torch.equal(actual.codes.view(torch.int8), expected.codes.view(torch.int8))


def at(codes: Codes, places: Tensor) -> Codes:
    return Codes(codes.codes.flatten(0, 1)[places], codes.scales.flatten(0, 1)[places])


def spoil(codes: Codes, where: tuple[object, ...]) -> None:
    codes.codes.view(torch.int8)[where] = GARBAGE[codes.codes.dtype]
    codes.scales[where] = torch.nan


@every_level
@both_dtypes
@pytest.mark.parametrize("name", SHAPES)
def test_attention_is_the_references(level, dtype, name):
    layer = Layer(SHAPES[name])
    batch, blocks = batch_of(CHUNKS)
    x, kernel = layer.rows(batch.num_tokens), AttentionKernel(1, level)
    cache = layer.cache(blocks, dtype)
    actual = layer.run(kernel, x, batch, cache)
    expected = layer.expected_over(x, batch, cache)
    assert relative_error(actual - x, expected - x) < 2e-6


@every_level
@both_dtypes
@pytest.mark.parametrize("name", ["plain", "four_channels"])
def test_codes_are_the_formulas(level, dtype, name):
    layer, d = Layer(SHAPES[name]), SHAPES[name].attention.head_dim
    batch, blocks = batch_of(CHUNKS)
    x, kernel = layer.rows(batch.num_tokens), AttentionKernel(1, level)
    wide, cache = layer.cache(blocks, torch.float32), layer.cache(blocks, dtype)
    before = unpacked_codes(cache.clone(), d)
    layer.run(kernel, x, batch, wide)
    layer.run(kernel, x, batch, cache)
    for floats, codes, old in zip(
        unpacked_cache(wide, d), unpacked_codes(cache, d), before, strict=True
    ):
        assert_same(at(codes, batch.kept_at), quantised(floats.flatten(0, 1)[batch.kept_at], dtype))
        others = torch.ones(floats.shape[:2], dtype=torch.bool).flatten()
        others[batch.kept_at] = False
        assert_same(at(codes, others), at(old, others))


@every_level
@both_dtypes
def test_rows_of_any_size_have_scales(level, dtype):
    """Of zeros and of what is hardly more, too; a row that isn't finite is NaN to those who see it,
    and to nobody else."""
    layer, d = Layer(Shape(16, AttentionSpec(2, 2, 16, None))), 16
    factors = torch.tensor([0.0, 1e-37, 1e-33, 1e-30, 1e-20, 1e-3, 1.0, torch.inf])
    batch, blocks = batch_of([(0, 1)] * len(factors))
    x, kernel = layer.rows(len(factors)) * factors[:, None], AttentionKernel(1, level)
    wide, cache = (layer.cache(blocks, kind) for kind in (torch.float32, dtype))
    layer.run(kernel, x, batch, wide)
    result = layer.run(kernel, x, batch, cache)
    assert result[:-1].isfinite().all()
    assert result[-1].isnan().all()
    for floats, codes in zip(unpacked_cache(wide, d), unpacked_codes(cache, d), strict=True):
        finite, last = batch.kept_at[:-1], at(codes, batch.kept_at[-1:])
        assert_same(at(codes, finite), quantised(floats.flatten(0, 1)[finite], dtype))
        assert last.scales.isnan().all()


@every_level
@both_dtypes
def test_what_is_not_seen_does_not_matter(level, dtype):
    """Neither beyond the context, nor before a window, nor of other sequences: not even as NaN."""
    spec = AttentionSpec(4, 2, 16, ROPE, window=64)
    layer, kernel = Layer(Shape(48, spec)), AttentionKernel(1, level)
    batch, blocks = batch_of([(130, 1), (128, 7)])  # see positions 67 and 65 on
    x, clean = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    both = unpacked_codes(clean.clone(), spec.head_dim)
    for part in both:
        spoil(part, (slice(0, 8),))  # the first 64 positions of both sequences
        spoil(part, (16, slice(131 - 128, None)))
        spoil(part, (17, slice(135 - 128, None)))
    dirty = packed_codes(*both)
    assert torch.equal(layer.run(kernel, x, batch, dirty), layer.run(kernel, x, batch, clean))


@every_level
@both_dtypes
@pytest.mark.parametrize("name", ["plain", "window_sinks", "chunk"])
def test_over_chunks_and_threads(level, dtype, name):
    """140 tokens of a sequence at once, in chunks, and one by one, by one thread and by three."""
    layer = Layer(SHAPES[name])
    x, results, fresh = layer.rows(140), [], layer.cache(9, dtype)
    for threads, chunk in ((1, 140), (3, 33), (1, 1), (3, 1)):
        kernel, cache, parts = AttentionKernel(threads, level), fresh.clone(), []
        for start in range(0, 140, chunk):
            rows = x[start : start + chunk]
            batch = build_batch([ChunkInput([0] * len(rows), start, list(range(9)), samples=False)])
            parts.append(layer.run(kernel, rows, batch, cache))
        results.append((torch.cat(parts), cache.view(torch.int8)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@settings(max_examples=15, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40)), min_size=1, max_size=6),
    dtype=st.sampled_from([INT8, FP8]),
    name=st.sampled_from(["plain", "window", "scale_sinks"]),
)
def test_over_batches(chunks, dtype, name):
    """Sequences together and each alone."""
    layer, kernel = Layer(SHAPES[name]), AttentionKernel()
    batch, blocks = batch_of(chunks)
    x, fresh = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    whole = layer.run(kernel, x, batch, fresh.clone())
    ordered = sorted(range(len(chunks)), key=lambda i: chunks[i][1] > 1)
    starts = batch.row_starts.tolist()
    for i, begin, end in zip(ordered, starts, starts[1:], strict=False):
        start, tokens = chunks[i]
        table = [i + len(chunks) * b for b in range(blocks // len(chunks))]
        alone = build_batch([ChunkInput([0] * tokens, start, table, samples=True)])
        assert torch.equal(layer.run(kernel, x[begin:end], alone, fresh.clone()), whole[begin:end])


@every_level
@both_dtypes
@pytest.mark.parametrize(("spec", "hidden"), LATENTS, ids=[f"{s.num_heads}" for s, _ in LATENTS])
def test_latent_attention_is_the_references(level, dtype, spec, hidden):
    layer = LatentLayer(spec, hidden)
    batch, blocks = batch_of(CHUNKS)
    x, attention = layer.rows(batch.num_tokens), layer.packed(level)
    wide, cache = (layer.cache(blocks, kind) for kind in (torch.float32, dtype))
    actual = run(attention, x, batch, cache)
    assert relative_error(actual - x, layer.expected_over(x, batch, cache) - x) < 2e-6
    run(attention, x, batch, wide)
    for floats, codes in zip(layer.groups(wide), layer.read(cache), strict=True):
        assert_same(at(codes, batch.kept_at), quantised(floats.flatten(0, 1)[batch.kept_at], dtype))


@every_level
@both_dtypes
def test_latents_beyond_the_context_are_never_seen(level, dtype):
    layer = LatentLayer(*LATENTS[0])
    batch, blocks = batch_of([(20, 1), (5, 7)])
    x, clean = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    groups = layer.read(clean.clone())
    for group in groups:
        spoil(group, (2, slice(21 - 16, None)))
        spoil(group, (1, slice(12, None)))
        spoil(group, (slice(3, None),))
    attention, dirty = layer.packed(level), packed_latents(groups)
    assert torch.equal(run(attention, x, batch, dirty), run(attention, x, batch, clean))


@every_level
@both_dtypes
def test_latents_over_chunks_and_threads(level, dtype):
    layer = LatentLayer(*LATENTS[2])
    x, fresh, results = layer.rows(140), layer.cache(9, dtype), []
    for threads, chunk in ((1, 140), (3, 33), (1, 1), (3, 1)):
        attention, cache, parts = layer.packed(level, threads), fresh.clone(), []
        for start in range(0, 140, chunk):
            rows = x[start : start + chunk]
            batch = build_batch([ChunkInput([0] * len(rows), start, list(range(9)), samples=False)])
            parts.append(run(attention, rows, batch, cache))
        results.append((torch.cat(parts), cache.view(torch.int8)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
