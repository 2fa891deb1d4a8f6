"""Latent attention in C++ against the reference, with sizes that fill no vector."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.reference import latent as reference_latent
from tests.support.kernel_attention import batch_of
from tests.support.kernel_experts import WEIGHT_DTYPES, levels, relative_error
from tests.support.kernel_latent import LatentLayer, run, shape

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

every_level = pytest.mark.parametrize("level", levels())
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])

SHAPES = [
    (shape(4, 20, 10, 6, 14, q_lora_rank=18, bias=True), 48),
    (shape(13, 33, 7, 2, 5, interleaved=False), 50),
    (shape(1, 64, 16, 16, 16, q_lora_rank=40), 33),
    (shape(7, 80, 12, 8, 24), 40),
]
# Decodes, beginnings and later chunks of prompts; around the ends of tiles and blocks.
CHUNKS = [(0, 1), (15, 1), (16, 1), (50, 1), (70, 1), (0, 5), (63, 1), (64, 1), (62, 4), (10, 130)]


@every_level
@pytest.mark.parametrize(("spec", "hidden"), SHAPES, ids=[f"{s.num_heads}" for s, _ in SHAPES])
@both_dtypes
def test_attention_is_the_references(level, spec, hidden, dtype):
    layer = LatentLayer(spec, hidden)
    batch, blocks = batch_of(CHUNKS)
    x, cache = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    kept = cache.clone()
    actual = run(layer.packed(level), x, batch, cache)
    expected = layer.expected(x, batch, kept)
    tolerance = 2e-6 if dtype == torch.float32 else 2e-3
    assert relative_error(actual - x, expected - x) < tolerance
    torch.testing.assert_close(cache, kept, atol=1e-5, rtol=1e-2 if dtype.itemsize == 2 else 1e-5)


@pytest.mark.parametrize("weight_dtype", ["bfloat16", "int8"])
def test_narrow_weights_stay_close(weight_dtype):
    layer = LatentLayer(*SHAPES[0])
    batch, blocks = batch_of(CHUNKS)
    x, cache = layer.rows(batch.num_tokens), layer.cache(blocks, torch.float32)
    actual = run(layer.packed(weight_dtype=weight_dtype), x, batch, cache.clone())
    assert 0 < relative_error(actual - x, layer.expected(x, batch, cache) - x) < 2e-2


@every_level
@both_dtypes
def test_rows_beyond_the_context_are_never_seen(level, dtype):
    """Not even as NaN, and neither are other sequences' blocks."""
    layer = LatentLayer(*SHAPES[0])
    batch, blocks = batch_of([(20, 1), (5, 7)])
    x, clean = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    dirty = clean.clone()
    dirty[2, 21 - 16 :] = torch.nan  # sequence 0's second block
    dirty[1, 12:] = torch.nan  # sequence 1's first
    dirty[3:] = torch.nan
    attention = layer.packed(level)
    assert torch.equal(run(attention, x, batch, dirty), run(attention, x, batch, clean))


@every_level
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@both_dtypes
def test_over_chunks_and_threads(level, weight_dtype, dtype):
    """140 tokens of a sequence at once, in chunks, and one by one, by one thread and by three."""
    layer = LatentLayer(*SHAPES[1])
    x, fresh, results = layer.rows(140), layer.cache(9, dtype), []
    for threads, chunk in ((1, 140), (3, 33), (1, 1), (3, 1)):
        attention, cache, parts = layer.packed(level, threads, weight_dtype), fresh.clone(), []
        for start in range(0, 140, chunk):
            rows = x[start : start + chunk]
            batch = build_batch([ChunkInput([0] * len(rows), start, list(range(9)), samples=False)])
            parts.append(run(attention, rows, batch, cache))
        results.append((torch.cat(parts), cache))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@settings(max_examples=10, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40)), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    which=st.sampled_from([0, 3]),
)
def test_over_batches(chunks, dtype, which):
    """Sequences together and each alone."""
    layer = LatentLayer(*SHAPES[which])
    attention = layer.packed(threads=2)
    batch, blocks = batch_of(chunks)
    x, fresh = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    whole = run(attention, x, batch, fresh.clone())
    ordered = sorted(range(len(chunks)), key=lambda i: chunks[i][1] > 1)
    starts = batch.row_starts.tolist()
    for i, begin, end in zip(ordered, starts, starts[1:], strict=False):
        start, tokens = chunks[i]
        table = [i + len(chunks) * b for b in range(blocks // len(chunks))]
        alone = build_batch([ChunkInput([0] * tokens, start, table, samples=True)])
        assert torch.equal(run(attention, x[begin:end], alone, fresh.clone()), whole[begin:end])


@pytest.mark.parametrize(("tokens", "start"), [(40, 0), (9, 70)])
def test_absorbed_and_expanded_are_the_same(monkeypatch, tokens, start):
    layer = LatentLayer(*SHAPES[0])
    batch, blocks = batch_of([(start, tokens)])
    x, cache = layer.rows(tokens), layer.cache(blocks, torch.float64)
    both = []
    for pays in (True, False):
        monkeypatch.setattr(reference_latent, "expansion_pays", lambda *_, pays=pays: pays)
        both.append(layer.expected(x, batch, cache.clone()))
    torch.testing.assert_close(*both)


def test_a_long_context_is_expanded_for_a_long_chunk_only():
    deepseek = replace(shape(128, 512, 128, 64, 128), q_lora_rank=1536)
    pays = reference_latent.expansion_pays
    assert pays(deepseek, 512, 512)
    assert pays(deepseek, 200, 100_000)
    assert not pays(deepseek, 150, 100_000)
    assert not pays(deepseek, 1, 4096)
