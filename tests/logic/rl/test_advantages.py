"""Whitening, groups and the schedule of lambda against numpy and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.rl.advantages.group import group_advantages
from megainfer.rl.advantages.length_lambda import length_lambda
from megainfer.rl.advantages.whitening import whitened

numbers = st.floats(-100, 100, allow_subnormal=False)
tables = st.lists(st.lists(numbers, max_size=8), max_size=6)


@given(tables)
def test_whitened_is_numpys_over_all_rows_together(rows: list[list[float]]) -> None:
    flat = np.array([value for row in rows for value in row])
    found = whitened(rows, clamp=1e9)
    assert [len(row) for row in found] == [len(row) for row in rows]
    expected = (flat - flat.mean()) / (flat.std() + 1e-8) if flat.size else flat
    assert [value for row in found for value in row] == pytest.approx(expected, rel=1e-6, abs=1e-4)


@given(tables, st.floats(0.01, 3))
def test_clamped_is_within_the_bound_and_otherwise_untouched(
    rows: list[list[float]], clamp: float
) -> None:
    free, bounded = whitened(rows, clamp=1e9), whitened(rows, clamp=clamp)
    assert bounded == [[min(max(value, -clamp), clamp) for value in row] for row in free]


def test_one_far_value_is_clamped() -> None:
    row = [0.0] * 400 + [1.0]
    assert whitened([row], clamp=10)[0][-1] == 10.0
    assert whitened([row], clamp=1000)[0][-1] == pytest.approx(20.0)


def test_whitened_by_hand() -> None:
    assert whitened([[1.0], [3.0, 1.0, 3.0]], clamp=10) == [
        pytest.approx([-1.0]),
        pytest.approx([1.0, -1.0, 1.0]),
    ]
    assert whitened([[0.5, 0.5], [0.5]], clamp=10) == [[0.0, 0.0], [0.0]]


@given(st.lists(numbers, min_size=1, max_size=16))
def test_a_group_is_numpys(rewards: list[float]) -> None:
    values = np.array(rewards)
    expected = (values - values.mean()) / (values.std() + 1e-6)
    if values.min() == values.max():
        expected = np.zeros_like(values)
    assert group_advantages(rewards) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_right_of_four() -> None:
    found = group_advantages([0.0, 0.0, 1.0, 0.0])
    assert found == pytest.approx([-(3**-0.5), -(3**-0.5), 3**0.5, -(3**-0.5)], abs=1e-5)


@given(st.integers(0, 30_000), st.booleans(), st.integers(1, 9000))
def test_lambda_is_the_papers_formula(tokens: int, finished: bool, window: int) -> None:
    length = tokens + (0 if finished else window / 2)
    expected = max(0.95, 1 - 1 / (0.05 * length)) if length else 0.95
    found = length_lambda(tokens, finished=finished, window=window)
    assert found == expected
    assert 0.95 <= found < 1


def test_lambda_leaves_its_least_at_400_tokens() -> None:
    assert length_lambda(400, finished=True, window=8) == 0.95
    assert length_lambda(401, finished=True, window=8) > 0.95
    assert length_lambda(396, finished=False, window=8) == 0.95
    assert length_lambda(397, finished=False, window=8) > 0.95
