"""The sums of `bench serve`, on recorded timelines, against values computed by hand."""

import json

import numpy as np
import pytest

from megainfer.bench.arrivals import Arrivals
from megainfer.bench.load import Result
from megainfer.bench.metrics import concurrency, parse_goals, summarise, tokens_by_second
from megainfer.bench.report import Report
from megainfer.bench.sample import Outcome
from megainfer.errors import ConfigError


def answered(start: float, *times: float, tokens: int | None = None, prompt: int = 10) -> Outcome:
    """A request sent at `start` whose pieces came at these times, by the same clock."""
    outcome = Outcome(start=start, prompt_tokens=prompt, output_tokens=tokens)
    for time in times:
        outcome.token_at(time)
    return outcome


TIMELINE = [
    # ttft 0.5, itl 0.25 0.25, e2el 1.0, tpot 0.25
    answered(100.0, 100.5, 100.75, 101.0, tokens=3),
    # ttft 1.0, itl 2.0, e2el 3.0; 5 tokens in two pieces: tpot 2.0 / 4 = 0.5
    answered(100.5, 101.5, 103.5, tokens=5, prompt=20),
    # one token: no itl, no tpot
    answered(101.0, 101.25, tokens=1),
    Outcome(start=100.0, error="HTTP 500: no"),
]


def test_the_sums_of_a_timeline():
    summary = summarise(TIMELINE, 4.0, [50, 100], {"ttft": 500, "tpot": 300})
    assert (summary.completed, summary.failed) == (3, 1)
    assert (summary.input_tokens, summary.output_tokens) == (40, 9)
    assert summary.request_rate == 3 / 4
    assert summary.output_rate == 9 / 4
    assert summary.total_rate == 49 / 4
    assert summary.goodput == 2 / 4  # the first and, with a tpot of 0, the third
    assert summary.times["ttft"].mean == pytest.approx(1750 / 3)
    assert summary.times["ttft"].median == 500
    assert summary.times["tpot"].mean == 375  # of two: one token has none
    assert summary.times["tpot"].std == 125
    assert summary.times["itl"].mean == pytest.approx(2500 / 3)
    assert summary.times["itl"].percentiles == {50: 250, 100: 2000}
    assert summary.times["e2el"].mean == pytest.approx(4250 / 3)


def test_what_ran_at_a_time_and_in_each_second():
    summary = summarise(TIMELINE, 4.0, [99], {})
    assert summary.goodput is None
    # At 101.0 the first ends before the third begins, so they never ran together.
    assert summary.peak_concurrency == 2
    assert concurrency(TIMELINE[:3])[1:4] == [(100.5, 2), (101.0, 1), (101.0, 2)]
    assert tokens_by_second(TIMELINE[:3]) == [2, 3, 0, 1]
    assert summary.peak_output_rate == 3


def test_percentiles_lie_between_the_two_nearest_values():
    outcomes = [answered(0.0, ttft) for ttft in (1.0, 2.0, 3.0, 4.0)]
    summary = summarise(outcomes, 1.0, [90], {})
    assert summary.times["ttft"].percentiles[90] == pytest.approx(3700)  # 3 + 0.7 of the way to 4


def test_nothing_answered_is_all_zero():
    summary = summarise([Outcome(error="x")], 2.0, [99], {"e2el": 1})
    assert (summary.completed, summary.failed, summary.goodput) == (0, 1, 0.0)
    assert summary.times["itl"].percentiles == {99: 0.0}
    assert summary.peak_concurrency == 0


def test_an_answer_without_usage_is_counted_in_pieces():
    assert answered(0.0, 1.0, 2.0, 3.0).tokens == 3
    assert answered(0.0, 1.0, 2.0, 3.0, tokens=7).tokens == 7


@pytest.mark.parametrize(
    "texts", [["ttft:200,tpot:50.5"], ["ttft:200", "tpot:50.5"], ["ttft:200 tpot:50.5"]]
)
def test_goals(texts):
    assert parse_goals(texts) == {"ttft": 200.0, "tpot": 50.5}


@pytest.mark.parametrize("text", ["itl:3", "ttft", "ttft:-1", "ttft:x", "ttft:nan"])
def test_a_goal_that_is_none_is_named(text):
    with pytest.raises(ConfigError, match=f"--goodput .* not '{text}'"):
        parse_goals([text])


def test_the_layout_is_vllms():
    summary = summarise(TIMELINE, 4.0, [99, 99.9], {"ttft": 500})
    result = Result(TIMELINE, 4.0, unfinished=0)
    report = Report(summary, result, ["ttft", "tpot"], rate=2.0, max_concurrency=8, gpus=2)
    lines = list(report.lines())
    assert lines[:6] == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     3         ",
        "Failed requests:                         1         ",
        "Maximum request concurrency:             8         ",
        "Request rate configured (RPS):           2.00      ",
        "Benchmark duration (s):                  4.00      ",
    ]
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "P99.9 TTFT (ms):                         999.00    " in lines
    assert "Output throughput per GPU (tok/s):       1.12      " in lines
    assert lines[-1] == "First of 1 failures: HTTP 500: no"
    assert not any("ITL" in line for line in lines)


def test_the_document_has_vllms_names():
    summary = summarise(TIMELINE, 4.0, [99], {})
    report = Report(summary, Result(TIMELINE, 4.0, 0), [], gpus=3)
    document = json.loads(json.dumps({**report.document(), **report.details()}))
    assert document["median_ttft_ms"] == 500
    assert document["p99_itl_ms"] == pytest.approx(summary.times["itl"].percentiles[99])
    assert document["output_throughput_per_gpu"] == pytest.approx(9 / 4 / 3)
    assert document["output_lens"] == [3, 5, 1, 0]
    assert document["itls"][0] == [0.25, 0.25]
    assert document["errors"][3] == "HTTP 500: no"
    assert document["request_goodput"] is None


# --- arrivals -----------------------------------------------------------------------------------


def gaps(arrivals: Arrivals, count: int = 4000) -> np.ndarray:
    times = arrivals.times(count, np.random.default_rng(7))
    return np.diff([0.0, *times])


def test_all_at_once():
    assert Arrivals().times(3, np.random.default_rng(0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_is_the_shape_of_a_gamma_distribution(burstiness):
    found = gaps(Arrivals(rate=50.0, burstiness=burstiness))
    assert found.sum() == pytest.approx(4000 / 50)
    assert found.mean() == pytest.approx(1 / 50)
    # The coefficient of variation of a gamma distribution is 1 / sqrt(shape).
    assert found.std() / found.mean() == pytest.approx(burstiness**-0.5, rel=0.08)


def test_infinite_burstiness_is_a_metronome():
    found = gaps(Arrivals(rate=50.0, burstiness=float("inf")), count=10)
    assert found == pytest.approx(np.full(10, 1 / 50))


def test_a_seed_makes_the_same_arrivals():
    draw = Arrivals(rate=3.0)
    first, second, other = (draw.times(9, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_ramps_go_from_start_to_end():
    linear = Arrivals(ramp="linear", ramp_start=10, ramp_end=30)
    assert linear.rates(5) == [10, 15, 20, 25, 30]
    exponential = Arrivals(ramp="exponential", ramp_start=1, ramp_end=16)
    assert exponential.rates(5) == pytest.approx([1, 2, 4, 8, 16])
    found = gaps(Arrivals(ramp="linear", ramp_start=10, ramp_end=1000))
    assert found[:400].mean() == pytest.approx(np.log(109 / 10) / 99, rel=0.15)
    assert found[-400:].mean() == pytest.approx(1 / 950, rel=0.15)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"rate": 0.0}, "--request-rate"),
        ({"rate": float("nan")}, "--request-rate"),
        ({"burstiness": 0.0}, "--burstiness"),
        ({"ramp": "quadratic"}, "'quadratic'"),
        ({"ramp": "linear", "ramp_start": 1}, "needs both"),
        ({"ramp": "linear", "ramp_start": 5, "ramp_end": 1}, "not 5 and 1"),
        ({"ramp": "linear", "ramp_start": 1, "ramp_end": 2, "rate": 3.0}, "leave --request-rate"),
        ({"ramp_start": 1}, "need --ramp-up-strategy"),
    ],
)
def test_impossible_arrivals_are_named(wish, message):
    with pytest.raises(ConfigError, match=message):
        Arrivals(**wish)
