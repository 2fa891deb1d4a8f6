"""The best tokens and draws, interpreted, against the reference."""

import math

import pytest
import torch
from torch import Tensor

from megainfer.compute.gpu.kernels.sampling import candidates
from megainfer.compute.gpu.tokens import GpuTokens
from megainfer.compute.reference import kernels as reference
from megainfer.compute.tokens import DrawWish
from megainfer.device import HOST

TOKENS = GpuTokens(HOST)
SOAK = (pytest.mark.slow, pytest.mark.timeout(600))
ROUNDING = 3e-6  # of a cumulative distribution in float32
WISHES = [
    {},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 500},
    {"top_p": 2.0**-126},
    {"top_p": 0.2},
    {"top_p": 0.9},
    {"top_p": 0.999999},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.7},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 2.0**-126, "top_p": 0.5},
    {"temperature": 1e-3},
    {"temperature": 100.0, "top_p": 0.5},
]


def wish_of(size: int, uniform: float, **wished: float) -> DrawWish:
    given = {"temperature": 0.8, "top_k": size, "top_p": 1.0, "min_p": 0.0, **wished}
    given["top_k"] = min(int(given["top_k"]), size)
    return DrawWish(**given, uniform=uniform)


def assert_drawn_as_by_the_reference(logits: Tensor, wishes: list[DrawWish]) -> Tensor:
    """But where a number falls on a border between two tokens, give or take a rounding."""
    drawn = TOKENS.draw(logits, wishes)
    low, high = (
        reference.draw(logits, [w._replace(uniform=max(0.0, w.uniform + shift)) for w in wishes])
        for shift in (-ROUNDING, ROUNDING)
    )
    assert ((low <= drawn) & (drawn <= high)).all()
    return drawn


@pytest.fixture
def short_tiles(monkeypatch):
    """Rows of hundreds are long then, and so are lists of more than 64."""
    monkeypatch.setattr(candidates, "TILE", 64)
    monkeypatch.setattr(candidates, "SEARCH_TILE", 64)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 257, 5000])
def test_the_best_are_the_references(size):
    logits = torch.randn(6, size)
    logits[1] = -torch.inf
    logits[2, size // 2] = torch.inf
    logits[3, :: max(1, size // 3)] = logits[3].max()  # ties
    logits[4] = -0.0
    logits[4, size // 2] = 0.0
    logits[5, size // 2 :: 2] = torch.nan
    for rows in (logits, logits[3:4], logits[:0]):
        values, ids = TOKENS.best(rows)
        expected, places = reference.best(rows)
        assert torch.equal(ids, places)
        torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


def test_nan_is_the_best_whatever_its_sign():
    logits = torch.tensor([[1.0, math.nan, 2.0], [1.0, 3.0, -math.nan]])
    logits[1, 2] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    assert TOKENS.best(logits)[1].tolist() == [1, 2]


@pytest.mark.parametrize("rows", [100, pytest.param(2000, marks=SOAK)])
def test_many_rows_are_drawn_from_in_a_launch(rows):
    logits = torch.randn(rows, 50) * torch.rand(rows, 1) * 10
    temperatures = (torch.rand(rows) * 3 + 0.1).tolist()
    wishes = [wish_of(50, torch.rand(()).item(), temperature=t) for t in temperatures]
    drawn = assert_drawn_as_by_the_reference(logits, wishes)
    assert len(drawn.unique()) > 25


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [2, 50, 257])
def test_many_rows_are_cut_in_a_launch(size):
    logits = torch.randn(300, size) * torch.rand(300, 1) * 10
    cuts = [WISHES[i % len(WISHES)] for i in range(300)]
    assert_drawn_as_by_the_reference(
        logits, [wish_of(size, torch.rand(()).item(), **cut) for cut in cuts]
    )


@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0, 40.0])
@pytest.mark.parametrize("size", [1, 2, 257])
def test_cuts_are_the_references(size, spread):
    logits = spread * torch.randn(len(WISHES), size)
    logits[:, ::7] = -torch.inf if size > 1 else 0.0
    assert_drawn_as_by_the_reference(
        logits, [wish_of(size, torch.rand(()).item(), **wished) for wished in WISHES]
    )


@pytest.mark.usefixtures("short_tiles")
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_cuts_of_long_rows_are_the_references(spread):
    """Where lists suffice, and where all of the row has to be searched."""
    logits = (spread * torch.randn(len(WISHES), 150) * 8).round() / 8  # with ties
    assert_drawn_as_by_the_reference(
        logits, [wish_of(150, torch.rand(()).item(), **wished) for wished in WISHES]
    )


def test_a_whole_vocabulary(monkeypatch):
    monkeypatch.setattr(candidates, "SEARCH_TILE", candidates.TILE)  # for the interpreter's sake
    size = 50_257
    wishes = [{}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 20_000}]
    logits = torch.randn(len(wishes), size) * 4
    assert_drawn_as_by_the_reference(
        logits, [wish_of(size, torch.rand(()).item(), **wished) for wished in wishes]
    )


def test_tokens_that_tie_at_a_cut_are_kept_together():
    logits = torch.tensor([1.0, 2.0, 1.0, 0.0, -0.0, -5.0]).expand(6, -1).contiguous()
    for wished, kept in (({"top_k": 2}, {0, 1, 2}), ({"top_k": 4}, {0, 1, 2, 3, 4})):
        wishes = [wish_of(6, (i + 0.5) / 6, **wished, temperature=4.0) for i in range(6)]
        assert set(TOKENS.draw(logits, wishes).tolist()) == kept
    wishes = [wish_of(6, (i + 0.5) / 6, top_p=0.6) for i in range(6)]
    assert set(TOKENS.draw(logits, wishes).tolist()) == {0, 1, 2}


def test_unequal_logits_do_not_tie_however_close_they_are():
    """Beside the best both are as far away, to the last bit."""
    low = torch.tensor(0.05)
    high = torch.nextafter(low, torch.tensor(1.0))
    logits = torch.stack([low, torch.tensor(0.1), high]).expand(8, -1).contiguous()
    wishes = [wish_of(3, i / 8, top_k=2) for i in range(8)]
    assert set(TOKENS.draw(logits, wishes).tolist()) == {1, 2}


@pytest.mark.parametrize("size", [1, 64, 70])
@pytest.mark.parametrize("wished", [{}, {"top_k": 2, "top_p": 0.5}], ids=str)
@pytest.mark.usefixtures("short_tiles")
def test_rows_with_nothing_to_draw_give_some_token_and_leave_others_theirs(size, wished):
    logits = torch.zeros(7, size)
    for row, poison in enumerate((math.nan, math.inf, -math.inf), start=1):
        logits[row, -1] = poison
        logits[row + 3] = poison
    logits[6] = 0.0
    wishes = [wish_of(size, 0.5, **wished)] * 7
    drawn = TOKENS.draw(logits, wishes)
    assert ((drawn >= 0) & (drawn < size)).all()
    assert drawn[0] == drawn[6] == TOKENS.draw(logits[:1], wishes[:1])


def test_neither_other_rows_nor_tiles_show_in_a_token(monkeypatch):
    """Integers are the same in whatever order they are added."""
    logits = torch.randn(5, 150)
    wishes = [wish_of(150, (i + 0.3) / 5, **WISHES[3 * i]) for i in range(5)]
    together = TOKENS.draw(logits, wishes)
    for tile in (64, 16):
        monkeypatch.setattr(candidates, "TILE", tile)
        monkeypatch.setattr(candidates, "SEARCH_TILE", tile)
        for row in (0, 2, 3):
            alone = TOKENS.draw(logits[row : row + 1].clone(), wishes[row : row + 1])
            assert alone == together[row]
    backwards = TOKENS.draw(logits.flip(0), wishes[::-1])
    assert torch.equal(backwards.flip(0), together)


def test_no_rows_no_tokens():
    assert TOKENS.draw(torch.empty(0, 9), []).tolist() == []
