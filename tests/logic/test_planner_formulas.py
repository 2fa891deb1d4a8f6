"""The paper's formulas, the predicted timeline, and the choice of m."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.pipeline import PingPong
from megainfer.planner.formulas import (
    layer_period,
    min_micro_batches,
    total_time,
)
from megainfer.planner.micro_batches import choose_micro_batches
from megainfer.planner.profiles import Curve, StageProfile, profile_rows
from tests.support.timeline import predicted_timeline


@pytest.mark.parametrize(
    ("t_f", "t_c", "m"),
    [(1.0, 0.0, 2), (1.0, 0.5, 3), (1.0, 0.51, 4), (0.1, 0.05, 3), (1.0, 1.0, 4), (0.3, 0.15, 3)],
)
def test_the_least_m_is_the_papers(t_f: float, t_c: float, m: int) -> None:
    assert min_micro_batches(t_f, t_c) == m


def test_the_least_m_needs_a_time() -> None:
    with pytest.raises(ConfigError, match="t_f > 0"):
        min_micro_batches(0.0, 1.0)


seconds = st.floats(0.01, 1.0)


@given(t_a=seconds, t_e=seconds, share=st.floats(0, 1), layers=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_the_timeline_takes_the_total_time_where_nobody_stalls(
    t_a: float, t_e: float, share: float, layers: int
) -> None:
    t_c = share * max(t_a, t_e)
    m = min_micro_batches(max(t_a, t_e), t_c)
    spans = predicted_timeline(t_a, t_e, t_c, m, layers)
    assert max(span.end for span in spans) == pytest.approx(total_time(t_a, t_e, t_c, m, layers))


@given(t_f=seconds, share=st.floats(0, 1), layers=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_every_micro_batch_keeps_the_published_bounds_at_balance(
    t_f: float, share: float, layers: int
) -> None:
    """(T_a + T_e + 2 T_c) + m T_f (L - 1) <= T_iter <= m T_f L."""
    t_c = share * t_f
    m = min_micro_batches(t_f, t_c)
    spans = predicted_timeline(t_f, t_f, t_c, m, layers)
    for mb in range(m):
        own = [span for span in spans if span.micro_batch == mb]
        took = own[-1].end - own[0].start
        least = 2 * t_f + 2 * t_c + m * t_f * (layers - 1)
        assert least * (1 - 1e-8) <= took <= m * t_f * layers * (1 + 1e-8)


@given(t_a=seconds, t_e=seconds, t_c=st.floats(0, 1), m=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_the_timeline_settles_at_the_layer_period_for_any_m(
    t_a: float, t_e: float, t_c: float, m: int
) -> None:
    spans = predicted_timeline(t_a, t_e, t_c, m, 12)
    ends = [s.end for s in spans if s.micro_batch == m - 1 and s.kind == "expert"]
    assert ends[-1] - ends[-2] == pytest.approx(layer_period(t_a, t_e, t_c, m))


@given(t_a=seconds, t_e=seconds, t_c=st.floats(0, 1), m=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_timeline_is_one_that_the_pingpong_runs(
    t_a: float, t_e: float, t_c: float, m: int
) -> None:
    layers = 3
    spans = predicted_timeline(t_a, t_e, t_c, m, layers)
    pingpong = PingPong(m, layers)
    for mb in range(m):
        pingpong.start(mb, mb)
    # At equal times the replies come first, as the node polls before it chooses.
    events = sorted(
        [(span.end, 0, span) for span in spans if span.kind == "combine"]
        + [(span.start, 1, span) for span in spans if span.kind == "attention"],
        key=lambda event: event[:2],
    )
    for _, _, span in events:
        if span.kind == "combine":
            pingpong.replied(span.micro_batch, span.layer, 0)
        else:
            assert pingpong.next() == span.micro_batch
            pingpong.dispatched(span.micro_batch, span.layer, {0})


def test_nobody_does_two_things_at_once_in_the_timeline() -> None:
    spans = predicted_timeline(1.0, 0.7, 0.3, 3, 5)
    for kind in ("attention", "expert"):
        own = sorted((span for span in spans if span.kind == kind), key=lambda span: span.start)
        assert all(a.end <= b.start + 1e-12 for a, b in pairwise(own))


def test_curves_are_straight_between_and_beyond_their_points() -> None:
    curve = Curve(((10, 1.0), (20, 2.0), (40, 3.0)))
    assert [curve.at(rows) for rows in (15, 20, 30, 60)] == pytest.approx([1.5, 2.0, 2.5, 4.0])
    assert curve.at(5) == pytest.approx(0.5)
    assert Curve(((10, 1.0), (20, 3.0))).at(1) == 0.0, "never negative"
    assert Curve(((10, 1.0),)).at(99) == 1.0


@pytest.mark.parametrize(
    "points", [(), ((2, 1.0), (2, 1.0)), ((1, -1.0),), ((1, math.nan),), ((1, math.inf),)]
)
def test_a_profile_that_cannot_be_is_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ConfigError, match="a profile"):
        Curve(points)


def linear(fixed: float, per_row: float) -> Curve:
    return Curve(((1, fixed + per_row), (1024, fixed + 1024 * per_row)))


def test_splitting_pays_where_computing_dominates() -> None:
    profile = StageProfile(linear(0, 1e-3), linear(0, 1e-3), linear(1e-6, 0))
    choice = choose_micro_batches(profile, 64, 4)
    assert choice.micro_batches == 3, "two leave the transfers uncovered, a fourth adds nothing"
    assert [p.micro_batches for p in choice.predictions] == [1, 2, 3, 4]
    assert choice.predictions[0].period == pytest.approx(2 * 0.064, rel=1e-3)


def test_splitting_does_not_pay_where_reading_the_experts_dominates() -> None:
    profile = StageProfile(linear(0, 1e-6), linear(1e-3, 0), linear(1e-6, 0))
    choice = choose_micro_batches(profile, 64, 4)
    assert choice.micro_batches == 1
    worse = [p.throughput for p in choice.predictions]
    assert worse == sorted(worse, reverse=True)


def test_micro_batches_beyond_the_batch_add_nothing() -> None:
    profile = StageProfile(linear(0, 1e-3), linear(0, 1e-3), linear(1e-3, 0))
    choice = choose_micro_batches(profile, 2, 8)
    assert choice.micro_batches == 2
    assert {p.throughput for p in choice.predictions[1:]} == {choice.predictions[1].throughput}


def test_choosing_names_what_is_wrong() -> None:
    profile = StageProfile(linear(0, 0), linear(0, 0), linear(0, 0))
    with pytest.raises(ConfigError, match="no time at all"):
        choose_micro_batches(profile, 4, 2)
    with pytest.raises(ConfigError, match="got 0 and 2"):
        choose_micro_batches(profile, 0, 2)


def test_profile_rows_end_with_what_may_run_but_stay_few():
    assert profile_rows(1) == [1]
    assert profile_rows(64) == [1, 2, 4, 8, 16, 32, 64]
    assert profile_rows(100_000) == profile_rows(512) == [2**i for i in range(10)]
