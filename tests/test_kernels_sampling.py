"""`choose` against plain Python that sorts, cuts and walks the distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.kernels import reference as kernels
from megainfer.kernels.reference import sampling

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


def choose_all(logits, temperature, top_k, top_p, uniforms=GRID) -> list[int]:
    """One row for each uniform number."""
    rows = len(uniforms)
    return kernels.choose(
        torch.tensor(logits).expand(rows, -1),
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p, dtype=torch.float64),
        torch.tensor(uniforms, dtype=torch.float64),
    ).tolist()


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.permutations(range(9)),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 2.0]),
    top_k=st.integers(1, 9),
    top_p=st.sampled_from([0.05, 0.31, 0.77, 0.97, 1.0]),
)
def test_choices_walk_the_kept_distribution(ranks, temperature, top_k, top_p):
    logits = [0.4 * rank for rank in ranks]
    kept = sorted(kept_tokens(logits, temperature, top_k, top_p))
    mass = [math.exp((logits[t] - max(logits)) / temperature) for t in kept]
    for uniform, token in zip(GRID, choose_all(logits, temperature, top_k, top_p), strict=True):
        assert token in kept
        before = sum(mass[: kept.index(token)]) / sum(mass)
        after = sum(mass[: kept.index(token) + 1]) / sum(mass)
        assert before - 1e-6 <= uniform <= after + 1e-6


def test_tokens_that_tie_at_the_cut_are_kept_together():
    logits = [1.0, 2.0, 1.0, 0.0]
    assert set(choose_all(logits, 1.0, 2, 1.0)) == {0, 1, 2}


def test_an_impossible_token_is_never_drawn():
    logits = [-math.inf, 0.0, -math.inf, 0.0, -math.inf]
    assert set(choose_all(logits, 1.0, 5, 1.0)) == {1, 3}


@pytest.mark.parametrize("temperature", [2.0**-126, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature):
    assert set(choose_all([3.0, 3.5, -40.0], temperature, 3, 1.0)) == {1}


@pytest.mark.parametrize("guesses", [(), (2,), (2, 5), (9,)])
def test_a_nucleus_wider_than_the_guess_is_found(monkeypatch, guesses):
    logits = [0.1 * rank for rank in (4, 8, 1, 0, 6, 3, 7, 2, 5)]
    expected = kept_tokens(logits, 1.0, 9, 0.9)
    monkeypatch.setattr(sampling, "NUCLEUS_GUESSES", guesses)
    grid = [i / 200 for i in range(200)]
    assert set(choose_all(logits, 1.0, 9, 0.9, grid)) == expected
