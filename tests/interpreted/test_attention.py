"""Paged attention, interpreted, against the reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.gpu.kernels.attention import segments
from megainfer.compute.gpu.kernels.attention.paged import Queries, paged_attention
from megainfer.compute.reference import kernels as reference
from megainfer.compute.reference.kernels import Scoring
from megainfer.device import HOST
from tests.support.interpreted import rows_alone

MIXED = [(0, 1), (15, 1), (66, 1), (0, 5), (60, 9), (130, 2)]
LONG = [(300, 1), (520, 1), (3, 1), (510, 5), (0, 2)]  # of several segments


@dataclass(frozen=True)
class Shape:
    """A layer's heads, and how its cache is cut."""

    heads: int
    kv_heads: int
    head_dim: int
    block: int = 16


SHAPE = Shape(6, 2, 16)
ONE_KEY = Shape(6, 1, 16)
SHAPES = {
    "grouped": SHAPE,
    "each_its_own": Shape(3, 3, 20),
    "one_for_all": Shape(13, 1, 24, 4),
    "odd_blocks": Shape(4, 2, 16, 7),
    "large_group": Shape(20, 1, 8),
    "wide": Shape(2, 1, 144),
}
SCORINGS = {
    "plain": Scoring(),
    "scale_sinks": Scoring(0.4, torch.randn(6)),
    "window": Scoring(window=37),
    "window_of_one": Scoring(window=1),
    "window_sinks": Scoring(sinks=torch.randn(6), window=64),
    "chunk": Scoring(chunk=48),
    "window_chunk": Scoring(window=20, chunk=30),
}


class Step:
    """Random queries of a step, and caches that have its tokens and NaN everywhere else."""

    def __init__(
        self, shape: Shape, chunks: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32
    ) -> None:
        self.batch = step_of(chunks, shape.block)
        blocks = int(self.batch.block_table.max()) + 1
        size = (blocks, shape.block, shape.kv_heads, shape.head_dim)
        self.caches = tuple(torch.full(size, torch.nan, dtype=dtype) for _ in range(2))
        for table, chunk in zip(self.batch.block_table, self.batch.chunks, strict=True):
            at = places(table, range(chunk.context), shape.block)
            for cache in self.caches:
                cache.flatten(0, 1)[at] = torch.randn(len(at), *size[2:]).to(dtype)
        rows = self.batch.num_tokens
        self.q = torch.randn(rows, shape.heads, shape.head_dim).to(dtype)
        self.gates: Tensor | None = None

    def take(self, whole: "Step", begin: int, stop: int) -> slice:
        """Some of the rows of a step of one sequence, where this one has the same positions; which
        rows they are here."""
        positions = whole.batch.positions[begin:stop]
        starts = [chunk.start for chunk in self.batch.chunks]
        own = starts.index(int(positions[0]))
        rows = slice(*self.batch.row_starts[own : own + 2].tolist())
        self.q[rows] = whole.q[begin:stop]
        seen, block = range(int(positions[-1]) + 1), self.batch.block_size
        here = places(self.batch.block_table[own], seen, block)
        there = places(whole.batch.block_table[0], seen, block)
        for mine, its in zip(self.caches, whole.caches, strict=True):
            mine.flatten(0, 1)[here] = its.flatten(0, 1)[there]
        return rows

    def run(self, scoring: Scoring, invariant: bool = False) -> Tensor:
        rows, heads, head_dim = self.q.shape
        guarded = torch.full((rows + 2, heads * head_dim), torch.nan, dtype=self.q.dtype)
        queries = Queries(self.q, self.batch.positions, self.gates)
        for span in self.batch.spans:
            paged_attention(HOST, queries, self.caches, span, scoring, guarded[:rows], invariant)
        assert guarded[rows:].isnan().all()
        return guarded[:rows]

    def expected(self, scoring: Scoring) -> Tensor:
        batch, results = self.batch, []
        if batch.decodes is not None:
            table, mask = batch.decodes.block_table, batch.decodes.mask
            rows = self.q[: len(table)]
            results.append(reference.decode_attention(rows, *self.caches, table, mask, scoring))
        for part in batch.prefills:
            rows = self.q[part.start : part.stop]
            results.append(
                reference.prefill_attention(rows, *self.caches, part.blocks, part.context, scoring)
            )
        return torch.cat(results)


def step_of(chunks: Sequence[tuple[int, int]], block: int) -> StepBatch:
    """(start, tokens) of each sequence, whose blocks lie anywhere."""
    counts = [-(-(start + tokens) // block) for start, tokens in chunks]
    order = iter(torch.randperm(sum(counts)).tolist())
    return build_batch(
        [
            ChunkInput([0] * tokens, start, [next(order) for _ in range(count)], True)
            for (start, tokens), count in zip(chunks, counts, strict=True)
        ],
        block_size=block,
    )


def places(table: Tensor, positions: range, block: int) -> Tensor:
    at = torch.tensor(list(positions), dtype=torch.int64)
    return table[at // block] * block + at % block


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_is_the_references(shape, dtype):
    step = Step(shape, MIXED, dtype)
    exact = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(step.run(Scoring()), step.expected(Scoring()), **exact)


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
def test_every_scoring_is_the_references(scoring, invariant):
    step = Step(SHAPE, MIXED)
    actual, expected = step.run(scoring, invariant), step.expected(scoring)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("name", ["plain", "window_sinks"])
def test_segments_are_joined(name, invariant):
    step, scoring = Step(ONE_KEY, LONG), SCORINGS[name]
    actual, expected = step.run(scoring, invariant), step.expected(scoring)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limits", [{"window": 64}, {"chunk": 64}, {"window": 30, "chunk": 50}])
def test_keys_that_nobody_sees_are_not_read(limits):
    """Not even as NaN: others may have their blocks by now."""
    scoring = Scoring(**limits)
    step = Step(SHAPE, [(130, 1), (300, 1), (128, 30)])
    expected = step.expected(scoring)
    for table, chunk in zip(step.batch.block_table, step.batch.chunks, strict=True):
        unseen = ~scoring.seen(torch.tensor(chunk.start), chunk.context)
        unseen &= torch.arange(chunk.context) < chunk.start
        for cache in step.caches:
            at = places(table, range(chunk.context), SHAPE.block)
            cache.flatten(0, 1)[at[unseen]] = torch.nan
    torch.testing.assert_close(step.run(scoring), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunks", [MIXED[:4], LONG[:2]], ids=["whole", "joined"])
def test_gates_are_applied(chunks, dtype):
    step = Step(ONE_KEY, chunks, dtype)
    gates = torch.randn(step.batch.num_tokens, 6, 2, 16).to(dtype)
    ungated = step.run(Scoring())
    step.gates = torch.cat([gates.flatten(1), torch.full_like(ungated, torch.nan)], 1)
    gate = gates[:, :, 1].flatten(1).sigmoid()
    torch.testing.assert_close(step.run(Scoring()), ungated * gate, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "window_sinks", "chunk"])
def test_rows_are_the_same_bits_in_any_step(name):
    """A sequence's last tokens in one chunk, in two, by single tokens, and beside others."""
    scoring, first, count = SCORINGS[name], 509, 7
    whole = Step(ONE_KEY, [(first, count)])
    with rows_alone():
        expected = whole.run(scoring, invariant=True)
        for begin, stop in ((0, 3), (3, 7), (2, 3), (3, 4), (6, 7)):
            part = Step(ONE_KEY, [(40, 1), (first + begin, stop - begin), (7, 1), (9, 6)])
            rows = part.take(whole, begin, stop)
            assert torch.equal(part.run(scoring, invariant=True)[rows], expected[begin:stop])


@pytest.mark.parametrize("name", ["plain", "window_sinks", "chunk"])
def test_a_program_for_each_segment_changes_no_bit(name, monkeypatch):
    step, scoring = Step(ONE_KEY, [(600, 1), (509, 7)]), SCORINGS[name]
    apart = step.run(scoring, invariant=True)
    monkeypatch.setattr(segments, "_WORKSPACE", 0)
    assert torch.equal(step.run(scoring, invariant=True), apart)


def test_rows_find_their_sequence_among_many():
    step = Step(Shape(1, 1, 16), [(i % 3, 2) for i in range(66)])
    torch.testing.assert_close(step.run(Scoring()), step.expected(Scoring()), rtol=1e-5, atol=1e-5)


def test_a_padding_row_attends_to_nothing():
    step = Step(SHAPE, [(20, 1), (5, 1)])
    expected = step.run(Scoring())
    step.batch.positions[1] = -1
    step.caches[0][step.batch.block_table[1]] = torch.nan
    actual = step.run(Scoring())
    assert torch.equal(actual[0], expected[0])
    assert not actual[1].any()
