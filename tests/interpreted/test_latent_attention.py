"""Latent attention, interpreted, against the reference."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.gpu.kernels.attention import segments
from megainfer.compute.gpu.kernels.attention.latent_attention import LatentQueries, attend_latents
from megainfer.compute.gpu.latent import LatentAttention
from megainfer.compute.gpu.products import TorchProducts
from megainfer.compute.half import HalfSource
from megainfer.compute.reference import kernels as reference
from megainfer.compute.reference import latent as reference_latent
from megainfer.device import HOST
from megainfer.models.spec import IndexerSpec, MlaSpec
from megainfer.topology import contiguous_placement
from tests.support.interpreted import rows_alone
from tests.support.kernel_latent import POSITIONS, LatentLayer, shape

BLOCK = 16
MIXED = [(0, 1), (15, 1), (66, 1), (0, 5), (60, 9), (130, 2)]
LONG = [(300, 1), (520, 1), (3, 1), (510, 3)]  # of several segments
SMALL = shape(3, 20, 10, 6, 14)
SHAPES = {
    "a_few_heads": SMALL,
    "one_head": shape(1, 64, 16, 16, 16),
    "heads_that_fill_no_tile": shape(20, 24, 8, 2, 8),
    "more_heads_than_a_tile": shape(37, 16, 8, 4, 8),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SPARSE = replace(SMALL, q_lora_rank=18, indexer=IndexerSpec(12, 14, 9, interleaved=True))


def step_of(chunks: Sequence[tuple[int, int]]) -> StepBatch:
    """(start, tokens) of each sequence, whose blocks lie anywhere."""
    counts = [-(-(start + tokens) // BLOCK) for start, tokens in chunks]
    order = iter(torch.randperm(sum(counts)).tolist())
    return build_batch(
        [
            ChunkInput([0] * tokens, start, [next(order) for _ in range(count)], True)
            for (start, tokens), count in zip(chunks, counts, strict=True)
        ],
        block_size=BLOCK,
    )


class Step:
    """Random queries of a step, and a cache that has its tokens and NaN everywhere else."""

    def __init__(
        self,
        spec: MlaSpec,
        chunks: Sequence[tuple[int, int]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec, self.batch = spec, step_of(chunks)
        blocks = int(self.batch.block_table.max()) + 1
        self.cache = torch.full((blocks, BLOCK, spec.latent_dim), torch.nan, dtype=dtype)
        for sequence, chunk in enumerate(self.batch.chunks):
            latents = torch.randn(chunk.context, spec.latent_dim).to(dtype)
            self.cache.flatten(0, 1)[self.places(sequence, chunk.context)] = latents
        rows, heads = self.batch.num_tokens, spec.num_heads
        longest = max(chunk.context for chunk in self.batch.chunks)
        self.queries = LatentQueries(
            torch.randn(heads, rows, spec.kv_lora_rank).to(dtype),
            torch.randn(rows, heads, spec.qk_dim).to(dtype),
            reference.rotary_table(spec.rope, spec.rope_dim, longest, dtype),
            self.batch.positions,
        )

    def places(self, sequence: int, count: int) -> Tensor:
        at = torch.arange(count)
        return self.batch.block_table[sequence][at // BLOCK] * BLOCK + at % BLOCK

    def take(self, whole: "Step", begin: int, stop: int) -> slice:
        """Some of the rows of a step of one sequence, where this one has the same positions; which
        rows they are here."""
        positions = whole.batch.positions[begin:stop]
        own = [chunk.start for chunk in self.batch.chunks].index(int(positions[0]))
        rows = slice(*self.batch.row_starts[own : own + 2].tolist())
        self.queries.projected[:, rows] = whole.queries.projected[:, begin:stop]
        self.queries.both[rows] = whole.queries.both[begin:stop]
        seen = int(positions[-1]) + 1
        latents = whole.cache.flatten(0, 1)[whole.places(0, seen)]
        self.cache.flatten(0, 1)[self.places(own, seen)] = latents
        return rows

    def run(self, chosen: Tensor | None = None, invariant: bool = False) -> Tensor:
        """chosen: int32 [T, top_k]."""
        rows, spec = self.batch.num_tokens, self.spec
        size = (rows + 2, spec.num_heads, spec.kv_lora_rank)
        guarded = torch.full(size, torch.nan, dtype=self.cache.dtype)
        for span in self.batch.spans:
            own = None if chosen is None else chosen[span.rows]
            attend_latents(
                HOST, spec, self.queries, self.cache, span, own, guarded[:rows], invariant
            )
        assert guarded[rows:].isnan().all()
        return guarded[:rows]

    def expected(self, chosen: Tensor | None = None) -> Tensor:
        q, spec, results = self.queries, self.spec, []
        rotated = reference.rotate(q.both[..., spec.nope_dim :], q.rotary[q.positions])
        both = torch.cat((q.projected.transpose(0, 1), rotated), -1)
        for sequence, rows in enumerate(self.batch.sequences):
            own = slice(rows.start, rows.stop)
            latents = self.cache.flatten(0, 1)[self.places(sequence, int(q.positions[own][-1]) + 1)]
            visible = torch.arange(len(latents)) <= q.positions[own, None]
            if chosen is not None:
                visible = torch.zeros_like(visible)
                for line, row in enumerate(range(rows.start, rows.stop)):
                    visible[line, chosen[row, : int(q.positions[row]) + 1].long()] = True
            results.append(
                reference.absorbed_attention(
                    both[None, own], latents[None], visible[None], spec.kv_lora_rank, spec.scale
                )[0]
            )
        return torch.cat(results)

    def choice(self, top_k: int) -> Tensor:
        """Of each row any of the positions that it sees, and then what must not be looked at."""
        chosen = torch.full((self.batch.num_tokens, top_k), 1 << 20, dtype=torch.int32)
        for row, position in enumerate(self.batch.positions.tolist()):
            some = torch.randperm(position + 1)[:top_k].sort().values
            chosen[row, : len(some)] = some
        return chosen


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_every_shape_is_the_references(spec, dtype):
    step, exact = Step(spec, MIXED, dtype), TOLERANCE[dtype]
    torch.testing.assert_close(step.run(), step.expected(), rtol=exact, atol=exact)


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_only_chosen_positions_are_seen(spec, invariant):
    step = Step(spec, [(0, 1), (40, 1), (5, 6), (30, 3)])
    chosen = step.choice(9)
    actual, expected = step.run(chosen, invariant), step.expected(chosen)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("top_k", [None, 290])
def test_segments_are_joined(top_k, invariant):
    step = Step(SMALL, LONG)
    chosen = None if top_k is None else step.choice(top_k)
    actual, expected = step.run(chosen, invariant), step.expected(chosen)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_invariant_results_are_the_same_bits_whatever_the_step():
    whole = Step(SMALL, [(505, 12)])
    with rows_alone():
        expected = whole.run(invariant=True)
        for begin, stop in ((0, 1), (11, 12), (3, 10)):
            step = Step(SMALL, [(505 + begin, stop - begin), (40, 1), (9, 3)])
            rows = step.take(whole, begin, stop)
            assert torch.equal(step.run(invariant=True)[rows], expected[begin:stop])


def test_a_program_for_each_segment_changes_no_bit(monkeypatch):
    step = Step(SMALL, [(600, 1), (509, 5)])
    apart = step.run(invariant=True)
    monkeypatch.setattr(segments, "_WORKSPACE", 0)
    assert torch.equal(step.run(invariant=True), apart)


def test_a_padding_row_attends_to_nothing():
    step = Step(SMALL, [(20, 1), (5, 1)])
    expected = step.run()
    step.batch.positions[1] = -1
    step.cache[step.batch.block_table[1]] = torch.nan
    actual = step.run()
    assert torch.equal(actual[0], expected[0])
    assert not actual[1].any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spec", [SMALL, replace(SMALL, q_lora_rank=18, bias=True), SPARSE])
def test_a_layer_is_the_references(spec, bias):
    layer, batch = LatentLayer(replace(spec, bias=bias), 48), step_of([(4, 1), (30, 1), (15, 7)])
    rotary = reference.rotary_table(spec.rope, spec.rope_dim, POSITIONS, torch.float32)
    reader = cast(WeightReader, layer.reader)
    source = HalfSource(
        layer.sources.spec, reader, contiguous_placement(2, 1, [0]), torch.float32, POSITIONS
    )
    size = (int(batch.block_table.max()) + 1, BLOCK)
    caches = tuple(torch.randn(*size, *shape) for shape in spec.cache_shapes)
    expected_caches = tuple(cache.clone() for cache in caches)
    x = layer.rows(batch.num_tokens)
    actual = x.clone()
    LatentAttention(layer.sources, source, rotary, TorchProducts()).add(
        actual, actual, batch, caches
    )
    expected = reference_latent.LatentAttention(layer.sources, reader, rotary, torch.float32)
    x += expected.forward(x, batch, expected_caches)
    torch.testing.assert_close(actual, x, rtol=1e-4, atol=1e-5)
    for cache, expected_cache in zip(caches, expected_caches, strict=True):
        torch.testing.assert_close(cache, expected_cache, rtol=1e-5, atol=1e-5)
