"""Predictions beside what others measured and published."""

import pytest

from tests.support.ratio_sweep import SWEEPS, Predictor, best, constant_of, errors


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.of(tmp_path_factory.mktemp("qwen3"))


def test_the_best_ratio_of_a_public_sweep_is_found_within_a_step(predictor: Predictor) -> None:
    sweep = SWEEPS[0]
    assert best(sweep.measured) == 5
    assert best(predictor.curve(sweep)) in (4, 5, 6)


def test_its_curve_has_the_measured_shape_after_one_constant(predictor: Predictor) -> None:
    curve, sweep = predictor.curve(SWEEPS[0]), SWEEPS[0]
    constant = constant_of(curve, sweep)
    assert 0.8 < constant < 1.25, "the table alone isn't far off"
    assert max(map(abs, errors(curve, sweep, constant).values())) < 0.1


def test_longer_contexts_have_the_measured_shape_too(predictor: Predictor) -> None:
    """And the constant of the first sweep is near, though few sequences share a GPU there."""
    constant = constant_of(predictor.curve(SWEEPS[0]), SWEEPS[0])
    for sweep in SWEEPS[1:]:
        curve = predictor.curve(sweep)
        own = constant_of(curve, sweep)
        assert own == pytest.approx(constant, rel=0.2)
        assert max(map(abs, errors(curve, sweep, own).values())) < 0.1
