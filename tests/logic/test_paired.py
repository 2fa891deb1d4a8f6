"""Paired rounds of two checkouts: the statistics, and which of a JSON's numbers are figures."""

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import paired_engines  # noqa: E402
from figures import Better, Selection, figures_of, row_names  # noqa: E402
from paired import Benchmark, Result, Round, RunFailed, ratio  # noqa: E402
from peers.measurement import Load  # noqa: E402
from ratios import Interval, Verdict, interval_of, t_quantile  # noqa: E402

# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (9, 2.262), (30, 2.042), (101, 1.984)],
)
def test_t_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=5e-4)


def test_interval_by_hand() -> None:
    """Logarithms 0.1, 0.2, 0.3: their mean is 0.2, their standard deviation 0.1."""
    interval = interval_of([math.exp(0.1), math.exp(0.2), math.exp(0.3)])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert interval.mean == pytest.approx(math.exp(0.2))
    assert interval.low == pytest.approx(math.exp(0.2 - half))
    assert interval.high == pytest.approx(math.exp(0.2 + half))


def test_twice_and_half_as_fast_is_as_fast() -> None:
    assert interval_of([2.0, 0.5]).mean == pytest.approx(1.0)


def test_one_round_says_nothing() -> None:
    assert interval_of([0.5]) == Interval(0.5, 0.0, math.inf)
    assert interval_of([0.5]).verdict(0.02) is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("low", "mean", "high", "verdict"),
    [
        (0.95, 0.96, 0.979, Verdict.BELOW),
        (0.5, 0.7, 0.979, Verdict.BELOW),  # wide, but what it says is clear
        (0.961, 0.98, 0.999, Verdict.NOT_BELOW),
        (0.985, 1.1, 1.3, Verdict.NOT_BELOW),  # likewise
        (0.95, 1.0, 1.05, Verdict.UNDECIDED),
    ],
)
def test_verdicts(low: float, mean: float, high: float, verdict: Verdict) -> None:
    assert Interval(mean, low, high).verdict(0.02) is verdict


# --- figures -------------------------------------------------------------------------------------

DOCUMENT = {
    "hardware": "two cores",
    "options": {"rounds": 3, "sizes": [2, 4]},
    "results": [
        {"size": 2, "tokens": 64, "engine": "apart", "ms": 4.0, "rows_per_second": 9, "m": 1},
        {"size": 2, "tokens": 64, "engine": "whole", "ms": None, "rows_per_second": 8, "m": 2},
        {"size": 4, "tokens": 64, "engine": "apart", "ms": math.nan, "rows_per_second": 0, "m": 2},
    ],
}


def test_figures_are_the_numbers_whose_names_say_which_way_is_better() -> None:
    assert figures_of(DOCUMENT, Selection()) == {
        "results/size=2,engine=apart/ms": 4.0,
        "results/size=2,engine=apart/rows_per_second": 9,
        "results/size=2,engine=whole/ms": None,
        "results/size=2,engine=whole/rows_per_second": 8,
        "results/size=4,engine=apart/ms": None,
        "results/size=4,engine=apart/rows_per_second": None,
    }


def test_options_name_more_figures_and_leave_some_out() -> None:
    some = Selection(higher=["m"], only=["*/m", "*/ms"], without=["*whole*"])
    paths = ["results/size=2,engine=apart/ms", "results/size=2,engine=apart/m"]
    assert list(figures_of(DOCUMENT, some))[:2] == paths
    assert [some.better(path) for path in paths] == [Better.LOWER, Better.HIGHER]
    assert some.better("results/size=2,engine=whole/ms") is None
    assert Selection(lower=["rows_per_second"]).better("a/rows_per_second") is Better.LOWER


def test_rows_that_nothing_tells_apart_go_by_their_index() -> None:
    assert row_names([{"ms": 0.5}, {"ms": 0.7}]) == ["0", "1"]
    assert row_names([{"size": 2}]) == ["0"]
    assert row_names([3.0, "x"]) == ["0", "1"]
    assert row_names([{"size": 2}, {"size": 2}]) == ["0", "1"]
    assert row_names([]) == []


def test_a_ratio_above_1_is_better() -> None:
    assert ratio(old=10.0, new=20.0, better=Better.HIGHER) == 2.0
    assert ratio(old=10.0, new=20.0, better=Better.LOWER) == 0.5


def test_a_figure_counts_in_the_rounds_that_tell_it() -> None:
    told, not_told = Round({"a/ms": 4.0}, {"a/ms": 2.0}), Round({"a/ms": None}, {"a/ms": 2.0})
    benchmark = Benchmark(["x"], Selection(), rounds=[told, not_told, told])
    assert benchmark.results() == [Result("a/ms", Better.LOWER, 4.0, 2.0, [2.0, 2.0])]
    benchmark.rounds = [not_told]
    assert benchmark.results() == []


def test_a_figure_that_only_one_checkout_has_is_an_error() -> None:
    with pytest.raises(RunFailed, match=r"only one of the checkouts has b/ms"):
        Round({"a/ms": 4.0}, {"a/ms": 2.0, "b/ms": None})


# --- engines that stay loaded --------------------------------------------------------------------


class TwiceAsSlow:
    """Stands in for an engine on a machine that grows slower and slower."""

    def __init__(self, told: list[tuple[str, int]], name: str, factor: float) -> None:
        self.entrant = SimpleNamespace(name="engine", precision="bf16")
        self._told, self._name, self._factor = told, name, factor

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()

    def run_whole(self, load: Load, seed: int) -> float:
        self._told.append((self._name, seed))
        return self._factor * (1 + len(self._told) / 1000)


def test_engines_are_asked_the_same_in_turn_until_their_ratio_is_known() -> None:
    told: list[tuple[str, int]] = []
    engines = [TwiceAsSlow(told, "old", 2.0), TwiceAsSlow(told, "new", 1.0)]
    args = SimpleNamespace(within=0.02, max_pairs=50)
    duel = paired_engines._fight(engines, Load(8, 4, 16), args)
    assert len(duel.ratios) == paired_engines.FEWEST_PAIRS
    assert duel.interval.mean == pytest.approx(2.0, rel=1e-3)
    assert told[2:6] == [("old", 1), ("new", 1), ("new", 2), ("old", 2)]
    assert duel.new == pytest.approx(2 * duel.old, rel=0.01)
