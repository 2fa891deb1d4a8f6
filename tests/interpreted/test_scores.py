"""Log-probabilities, interpreted, against the reference."""

import pytest
import torch
from torch import Tensor

from megainfer.compute.gpu.kernels.sampling import candidates
from megainfer.compute.gpu.kernels.sampling.logprobs import MOST
from megainfer.compute.gpu.tokens import GpuTokens
from megainfer.compute.reference import kernels as reference
from megainfer.compute.tokens import Scores
from megainfer.device import HOST

TOKENS = GpuTokens(HOST)


def assert_scores_are(scores: Scores, expected: Scores) -> None:
    assert torch.equal(scores.ids, expected.ids)
    assert torch.equal(scores.ranks, expected.ranks)
    torch.testing.assert_close(scores.values, expected.values, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(scores.own, expected.own, rtol=1e-6, atol=2e-6)


def batch_of(size: int) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Logits, tokens, rows, and how many of each one's best are wanted."""
    wanted = [min(n, size) for n in (0, 1, 1, 5, MOST // 3, size)]
    return torch.randn(8, size) * 5, torch.randint(size, (8,)), [0, 1, 2, 4, 5, 7], wanted


@pytest.mark.parametrize("size", [1, 2, 257, 1000])
def test_scores_are_the_references(size):
    batch = batch_of(size)
    assert_scores_are(TOKENS.scores(*batch), reference.scores(*batch))


@pytest.mark.parametrize("size", [65, 200])
def test_scores_of_long_rows_are_the_references(size, monkeypatch):
    monkeypatch.setattr(candidates, "TILE", 64)
    monkeypatch.setattr(candidates, "SEARCH_TILE", 64)
    batch = batch_of(size)
    assert_scores_are(TOKENS.scores(*batch), reference.scores(*batch))


def test_a_whole_vocabulary():
    logits, tokens = torch.randn(1, 50_257), torch.tensor([17])
    batch = logits, tokens, [0], [5]
    assert_scores_are(TOKENS.scores(*batch), reference.scores(*batch))


@pytest.mark.parametrize("size", [40, 200])
def test_of_tokens_that_tie_the_first_are_among_the_best(size, monkeypatch):
    """However many of them are listed, and a mask's tokens come last."""
    monkeypatch.setattr(candidates, "TILE", 64)
    monkeypatch.setattr(candidates, "SEARCH_TILE", 64)
    logits = torch.zeros(3, size)
    logits[0, 7] = 1.0
    logits[1, 3:] = -torch.inf
    scores = TOKENS.scores(logits, torch.tensor([8, 0, 5]), [0, 1, 2], [3, 4, 0])
    assert scores.ids.tolist() == [7, 0, 1, 0, 1, 2, 3]
    assert scores.ranks.tolist() == [2, 1, 1]
    assert scores.values[-1] == -torch.inf


def test_what_is_no_token_is_scored_as_the_nearest():
    logits = torch.randn(2, 20)
    astray = TOKENS.scores(logits, torch.tensor([-5, 99]), [0, 1], [0, 0])
    nearest = TOKENS.scores(logits, torch.tensor([0, 19]), [0, 1], [0, 0])
    assert torch.equal(astray.own, nearest.own)


def test_a_row_is_scored_alone():
    """Bit for bit, beside whatever others and whatever they want."""
    logits, tokens, rows, wanted = batch_of(257)
    together = TOKENS.scores(logits, tokens, rows, wanted)
    begin = 0
    for i, (row, number) in enumerate(zip(rows, wanted, strict=True)):
        alone = TOKENS.scores(logits[row : row + 1].clone(), tokens[row : row + 1], [0], [number])
        assert torch.equal(alone.values, together.values[begin : begin + number])
        assert torch.equal(alone.ids, together.ids[begin : begin + number])
        assert torch.equal(alone.own[0], together.own[i])
        begin += number


def test_rows_that_are_not_finite_leave_others_theirs():
    logits, tokens, rows, wanted = batch_of(100)
    expected = TOKENS.scores(logits, tokens, rows, wanted)
    logits[0], logits[7, 3] = torch.nan, torch.inf
    logits[5] = -torch.inf
    scores = TOKENS.scores(logits, tokens, rows, wanted)
    assert ((scores.ids >= 0) & (scores.ids < 100)).all()
    assert torch.equal(scores.own[1:4], expected.own[1:4])
    assert torch.equal(scores.values[:7], expected.values[:7])
