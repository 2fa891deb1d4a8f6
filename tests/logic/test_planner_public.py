"""Predictions beside what others measured and published."""

import pytest

from tests.support.ratio_sweep import (
    SWEEPS,
    Predictor,
    best,
    errors,
    fitted_factor,
    of_shape,
)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.of(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def factor(predictor: Predictor) -> float:
    return fitted_factor(predictor)


def test_one_constant_is_near_what_the_table_says(factor: float) -> None:
    assert 0.8 < factor < 1.25


def test_the_best_ratio_of_a_public_sweep_is_found_within_a_step(
    predictor: Predictor, factor: float
) -> None:
    sweep = SWEEPS[0]
    assert best(sweep.measured) == 5
    assert best(predictor.curve(sweep, factor)) in (4, 5, 6)


def test_its_curve_has_the_measured_shape(predictor: Predictor, factor: float) -> None:
    sweep = SWEEPS[0]
    curve = predictor.curve(sweep, factor)
    assert max(map(abs, errors(curve, sweep).values())) < 0.1
    assert max(map(abs, of_shape(curve, sweep).values())) < 0.11


def test_longer_contexts_that_the_constant_has_not_seen(
    predictor: Predictor, factor: float
) -> None:
    """Their shape holds; where few sequences share a GPU, launches weigh more than theirs do."""
    for sweep in SWEEPS[1:]:
        curve = predictor.curve(sweep, factor)
        assert max(map(abs, of_shape(curve, sweep).values())) < 0.12
        assert max(map(abs, errors(curve, sweep).values())) < 0.3
