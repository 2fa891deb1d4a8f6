"""The positions that queries attend to, interpreted, against the reference."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.gpu.kernels.attention import indexer
from megainfer.compute.gpu.kernels.attention.indexer import IndexQueries, choose_positions
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST
from megainfer.models.spec import RopeSpec

ROTATED, BLOCK, TOP_K = 6, 16, 9
MIXED = [(0, 1), (8, 1), (70, 1), (60, 9), (7, 3)]


class Step:
    """Questions of a step's rows, and a cache of keys with NaN where no token is."""

    def __init__(
        self,
        chunks: Sequence[tuple[int, int]],
        heads: int = 12,
        dim: int = 14,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.batch = step_of(chunks)
        self.cache = torch.full((int(self.batch.block_table.max()) + 1, BLOCK, dim), torch.nan)
        self.cache = self.cache.to(dtype)
        for row, chunk in enumerate(self.batch.chunks):
            self.put(row, torch.randn(chunk.context, dim).to(dtype))
        rows = self.batch.num_tokens
        rotary = reference.rotary_table(RopeSpec(1e4), ROTATED, 300, dtype)
        self.queries = IndexQueries(
            torch.randn(rows, heads, dim).to(dtype),
            torch.randn(rows, heads),
            rotary,
            self.batch.positions,
        )

    def _places(self, sequence: int, count: int) -> Tensor:
        at = torch.arange(count)
        return self.batch.block_table[sequence][at // BLOCK] * BLOCK + at % BLOCK

    def put(self, sequence: int, keys: Tensor) -> None:
        self.cache.flatten(0, 1)[self._places(sequence, len(keys))] = keys

    def keys(self, sequence: int, count: int) -> Tensor:
        return self.cache.flatten(0, 1)[self._places(sequence, count)]

    def chosen(self, top_k: int = TOP_K) -> list[list[int]]:
        """Of each row."""
        lists = []
        for span in self.batch.spans:
            chosen = choose_positions(HOST, self.queries, self.cache, span, top_k)
            positions = self.batch.positions[span.rows].tolist()
            assert chosen.shape == (span.num_rows, top_k)
            lists += [
                row[: position + 1]
                for row, position in zip(chosen.tolist(), positions, strict=True)
            ]
        return lists

    def expected(self, top_k: int = TOP_K) -> list[list[int]]:
        asked, lists = self.queries, []
        q = reference.rotate(asked.q, asked.rotary[asked.positions])
        for sequence, rows in enumerate(self.batch.sequences):
            own = slice(rows.start, rows.stop)
            context = int(asked.positions[rows.stop - 1]) + 1
            visible = torch.arange(context) <= asked.positions[own, None]
            seen = reference.choose_positions(
                q[None, own],
                asked.weights[None, own],
                self.keys(sequence, context)[None],
                visible[None],
                top_k,
            )
            lists += [row.nonzero().flatten().tolist() for row in seen[0]]
        return lists


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "dim"), [(12, 14), (17, 32)])
def test_the_best_are_the_references_in_ascending_order(heads, dim, dtype):
    step = Step(MIXED, heads, dim, dtype)
    assert step.chosen() == step.expected()


def test_prompts_that_do_not_fit_the_workspace_go_by_parts(monkeypatch):
    step = Step([(30, 1), (20, 9), (0, 2)])
    expected = step.chosen()
    monkeypatch.setattr(indexer, "_WORKSPACE", 0)
    assert step.chosen() == expected


def test_scores_of_any_size_and_sign_are_ordered():
    step = Step([(40, 1)], heads=1, dim=14)
    step.queries.q.fill_(0).select(2, -1).fill_(1)
    step.queries.weights.fill_(-1)
    keys = torch.zeros(41, 14)
    sizes = torch.randperm(41)
    keys[:, -1] = 10.0 ** (sizes - 30.0)  # scores from -1e10 to -1e-30
    step.put(0, keys)
    assert step.chosen() == [sizes.argsort()[:TOP_K].sort().values.tolist()]


def test_of_equal_scores_the_earliest_are_chosen():
    step = Step([(40, 1)], heads=2)
    step.queries.weights.copy_(torch.tensor([[1.0, -1.0]]))  # 0, and -0
    step.queries.q.copy_(step.queries.q[:, :1].clone().expand(-1, 2, -1))
    keys = torch.zeros(41, 14)
    step.put(0, keys)
    assert step.chosen() == [list(range(TOP_K))]


def test_nothing_is_written_behind_what_is_chosen(monkeypatch):
    monkeypatch.setattr(HOST, "empty", lambda shape, dtype: torch.full(shape, -7, dtype=dtype))
    step = Step([(3, 1), (20, 1)])
    (span,) = step.batch.spans
    chosen = choose_positions(HOST, step.queries, step.cache, span, TOP_K)
    assert chosen[0].tolist() == [0, 1, 2, 3] + [-7] * 5
    assert (chosen[1] >= 0).all()
