"""Drawing tokens, by every implementation, against plain Python that sorts, cuts and walks the
distribution."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.compute.cpu.kernels import library
from megainfer.compute.reference import kernels as reference
from megainfer.compute.reference.kernels import sampling
from megainfer.compute.tokens import DrawWish

LEVELS = library.levels() if library.is_built() else ()
GRID = [0.0, 0.1, 0.25, 0.37, 0.5, 0.61, 0.8, 0.93, 1 - 2**-52]


def kept_tokens(logits: list[float], temperature: float, top_k: int, top_p: float) -> set[int]:
    """The tokens that may be drawn; logits must all differ."""
    best = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    mass = [math.exp((logits[i] - max(logits)) / temperature) for i in best]
    kept, reached = set(), 0.0
    for token, share in zip(best, mass, strict=True):
        if top_p == 1 or reached < top_p * sum(mass):
            kept.add(token)
        reached += share
    return kept


@pytest.fixture(scope="module", params=["reference", *LEVELS])
def kernels(request):
    if request.param == "reference":
        return reference
    from megainfer.compute.cpu.kernels.attention import AttentionKernel

    return AttentionKernel(2, request.param)


def draw_all(kernels, logits, temperature, top_k, top_p, min_p=0.0, uniforms=GRID) -> list[int]:
    """One row for each uniform number."""
    rows = torch.tensor(logits, dtype=torch.float32).expand(len(uniforms), -1).contiguous()
    wishes = [DrawWish(temperature, top_k, top_p, min_p, uniform) for uniform in uniforms]
    return kernels.draw(rows, wishes).tolist()


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.permutations(range(9)),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 2.0]),
    top_k=st.integers(1, 9),
    top_p=st.sampled_from([0.05, 0.31, 0.77, 0.97, 1.0]),
)
def test_choices_walk_the_kept_distribution(kernels, ranks, temperature, top_k, top_p):
    logits = [0.4 * rank for rank in ranks]
    kept = sorted(kept_tokens(logits, temperature, top_k, top_p))
    mass = [math.exp((logits[t] - max(logits)) / temperature) for t in kept]
    for uniform, token in zip(
        GRID, draw_all(kernels, logits, temperature, top_k, top_p), strict=True
    ):
        assert token in kept
        before = sum(mass[: kept.index(token)]) / sum(mass)
        after = sum(mass[: kept.index(token) + 1]) / sum(mass)
        assert before - 1e-6 <= uniform <= after + 1e-6


def test_tokens_that_tie_at_the_cut_are_kept_together(kernels):
    logits = [1.0, 2.0, 1.0, 0.0]
    assert set(draw_all(kernels, logits, 1.0, 2, 1.0)) == {0, 1, 2}


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 200])
@pytest.mark.parametrize("temperature", [0.8, 2.0])
def test_unequal_logits_do_not_tie_however_close_they_are(kernels, top_k, size, temperature):
    """Near zero floats are so dense that such neighbours are equally likely, to the last bit."""
    rest = [-1.0 - 0.01 * i for i in range(size - 5)]
    logits = [0.1, math.nan, 0.1, *rest, 0.05, 0.05]
    logits[1] = float(np.nextafter(np.float32(0.1), np.float32(1)))
    logits[-1] = float(np.nextafter(np.float32(0.05), np.float32(1)))
    best = {1: {1}, 2: {0, 1, 2}, 3: {0, 1, 2}}[top_k]
    grid = [i / 200 for i in range(200)]
    assert set(draw_all(kernels, logits, temperature, top_k, 1.0, uniforms=grid)) == best
    logits[0] = logits[2] = -5.0
    kept = {1: {1}, 2: {1, size - 1}, 3: {1, size - 2, size - 1}}[top_k]
    assert set(draw_all(kernels, logits, temperature, top_k, 1.0, uniforms=grid)) == kept


def test_a_tiny_nucleus_is_the_best_token(kernels):
    assert set(draw_all(kernels, [3.0, 3.5, -40.0], 1.0, 3, 2.0**-126)) == {1}


def test_an_impossible_token_is_never_drawn(kernels):
    logits = [-math.inf, 0.0, -math.inf, 0.0, -math.inf]
    assert set(draw_all(kernels, logits, 1.0, 5, 1.0)) == {1, 3}


@pytest.mark.parametrize("temperature", [2.0**-126, 1e-6])
def test_a_tiny_temperature_is_greedy(kernels, temperature):
    assert set(draw_all(kernels, [3.0, 3.5, -40.0], temperature, 3, 1.0)) == {1}


@pytest.mark.parametrize("guesses", [(), (2,), (2, 5), (9,)])
def test_a_nucleus_wider_than_the_guess_is_found(monkeypatch, guesses):
    logits = [0.1 * rank for rank in (4, 8, 1, 0, 6, 3, 7, 2, 5)]
    expected = kept_tokens(logits, 1.0, 9, 0.9)
    monkeypatch.setattr(sampling, "NUCLEUS_GUESSES", guesses)
    grid = [i / 200 for i in range(200)]
    assert set(draw_all(reference, logits, 1.0, 9, 0.9, uniforms=grid)) == expected


def test_min_p_drops_what_is_less_likely_than_a_share_of_the_best(kernels):
    logits = [0.0, math.log(0.31), math.log(0.29), -5.0]
    grid = [i / 100 for i in range(100)]
    assert set(draw_all(kernels, logits, 1.0, 4, 1.0, 0.3, grid)) == {0, 1}


WISHES = [
    {},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 3000},
    {"top_p": 0.2},
    {"top_p": 0.9},
    {"top_p": 0.999999},
    {"top_k": 40, "top_p": 0.7},
    {"min_p": 0.05},
    {"min_p": 0.01, "top_k": 500, "top_p": 0.95},
]


@pytest.mark.parametrize("width", [1, 63, 64, 65, 1000, 20000])
@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0, 40.0])
def test_every_implementation_draws_what_the_reference_does(kernels, width, spread):
    """But where a number falls on a border between two tokens, give or take a rounding."""
    logits = spread_logits(width, spread)
    for wishes, allowed in zip(wishes_of(width), allowed_tokens(width, spread), strict=True):
        for token, (low, high) in zip(kernels.draw(logits, wishes).tolist(), allowed, strict=True):
            assert low <= token <= high


def spread_logits(width: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    logits = spread * torch.randn(12, width, generator=generator)
    logits[:, ::7] = -torch.inf if width > 1 else 0.0
    return logits


def wishes_of(width: int) -> list[list[DrawWish]]:
    """Of each row, by what cuts its distribution."""
    cuts = [{"top_k": width, "top_p": 1.0, "min_p": 0.0, **cut} for cut in WISHES]
    cuts = [{**cut, "top_k": min(cut["top_k"], width)} for cut in cuts]
    return [[DrawWish(0.8, **cut, uniform=(i + 0.37) / 12) for i in range(12)] for cut in cuts]


@cache
def allowed_tokens(width: int, spread: float) -> list[list[tuple[int, int]]]:
    """The first and the last token that each of the wishes may get, by the reference: once for all
    implementations."""
    logits = spread_logits(width, spread)
    return [
        [_around(row, wish) for row, wish in zip(logits, wishes, strict=True)]
        for wishes in wishes_of(width)
    ]


def _around(row: torch.Tensor, wish: DrawWish) -> tuple[int, int]:
    uniforms = [max(0, wish.uniform + shift) for shift in (-3e-6, 3e-6)]
    cuts = (wish.top_k, wish.top_p, wish.min_p)
    low, high = draw_all(reference, row.tolist(), 0.8, *cuts, uniforms)
    return low, high


@pytest.mark.parametrize("width", [1, 64, 65, 1000])
@pytest.mark.parametrize("poison", [[math.nan], [math.inf], [math.inf, math.nan], [-math.inf]])
def test_rows_with_nothing_to_draw_leave_others_theirs(kernels, width, poison):
    """At any place, and where all are so: nothing outside of the row is read or written."""
    rows = torch.zeros(5, width)
    rows[1, -1], rows[2, 0] = poison[0], poison[-1]
    rows[3] = torch.tensor(poison).repeat(width)[:width]
    cut = {"top_k": min(2, width), "top_p": 0.5}
    for wish in ({"top_k": width, "top_p": 1.0}, cut):
        wishes = [DrawWish(0.7, **wish, min_p=0.0, uniform=0.5)] * 5
        drawn = kernels.draw(rows, wishes).tolist()
        assert drawn[0] == drawn[4] == kernels.draw(rows[:1], wishes[:1]).item()
        if kernels is not reference:
            assert drawn[3] == -1


@pytest.mark.parametrize(
    "wish", [{"temperature": 0.0}, {"temperature": math.nan}, {"top_k": 0}, {"min_p": 2.0}], ids=str
)
@pytest.mark.parametrize("level", LEVELS)
def test_a_wish_that_leaves_nothing_draws_nothing(level, wish):
    from megainfer.compute.cpu.kernels.attention import AttentionKernel

    usual = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.0, "uniform": 0.3}
    drawn = AttentionKernel(1, level).draw(torch.randn(1, 200), [DrawWish(**{**usual, **wish})])
    assert drawn.tolist() == [-1]


def test_a_row_is_drawn_from_alone(kernels):
    """Bit for bit, beside whatever others and with however many of them."""
    logits = torch.randn(40, 5000, generator=torch.Generator().manual_seed(5))
    wishes = [DrawWish(0.9, 30 + i, 0.8, 0.0, i / 40) for i in range(40)]
    together = kernels.draw(logits, wishes).tolist()
    alone = [kernels.draw(logits[i : i + 1], wishes[i : i + 1]).item() for i in range(40)]
    assert alone == together
