"""Requests in the simulator: when they come, how long they are, and when their tokens do."""

import random
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.simulator import Cost, Load, Percentiles, Request, Scenario, Spell, simulate
from megainfer.simulator.arrivals import (
    Bursts,
    Poisson,
    requests_under_way,
    requests_until,
    stretched,
)
from megainfer.simulator.lengths import Fixed, Lengths, LogNormal, Spread, Traced
from megainfer.simulator.trace_file import read_trace

ALONE = Scenario(
    attention_nodes=1,
    expert_nodes=1,
    micro_batches=1,
    layers=4,
    choosing=1.0,
    attention=Cost(1e-3, 0.0),
    expert=Cost(2e-3, 0.0),
    transfer=0.5e-3,
    jitter=0.0,
    duration=1.0,
    warm_up=0.0,
)
STEP = 4 * (1e-3 + 2e-3 + 2 * 0.5e-3)


def alone(*requests: Request, **changes: int) -> Scenario:
    return replace(ALONE, load=Load(requests, **changes))


def test_one_request_has_a_token_a_step() -> None:
    outcome = simulate(alone(Request(0.1, 8, 5)))
    assert outcome.latencies.first_token.p50 == pytest.approx(STEP)
    assert outcome.latencies.between_tokens.count == 4
    assert outcome.latencies.between_tokens.p99 == pytest.approx(STEP)
    assert outcome.latencies.per_token.p50 == pytest.approx(STEP)
    assert outcome.tokens_per_second == pytest.approx(5.0)


def test_a_long_prompt_takes_a_step_a_piece() -> None:
    outcome = simulate(alone(Request(0.1, 70, 2), step_tokens=32))
    assert outcome.latencies.first_token.p50 == pytest.approx(3 * STEP)


def test_prompts_that_come_computed_take_no_time() -> None:
    load = Load((Request(0.1, 70, 2),), step_tokens=32, computes_prompts=False)
    outcome = simulate(replace(ALONE, load=load))
    assert outcome.latencies.first_token.p50 == pytest.approx(STEP)


def test_who_finds_no_place_waits_for_one() -> None:
    requests = Request(0.1, 8, 5), Request(0.1, 8, 5)
    outcome = simulate(alone(*requests, places=1))
    assert outcome.latencies.completed == 2
    # The second is there when the step begins in which the first one's place is free.
    assert outcome.latencies.first_token.p50 == pytest.approx(mean([STEP, 6 * STEP]))


def test_who_does_not_fit_beside_others_waits_too() -> None:
    requests = Request(0.1, 8, 5), Request(0.1, 8, 5)
    small = simulate(alone(*requests, cache_tokens=15))
    assert small.latencies.first_token.p50 == pytest.approx(mean([STEP, 6 * STEP]))
    roomy = simulate(alone(*requests, cache_tokens=17))
    # The second comes when the first one's step has begun.
    assert roomy.latencies.first_token.p50 == pytest.approx(mean([STEP, 2 * STEP]))


def test_decoding_reads_the_cache_and_prompts_their_pairs() -> None:
    reading = Cost(0.0, 0.0, per_context=1e-3, per_pair=1e-2)
    scenario = replace(alone(Request(0.1, 3, 2)), attention=reading)
    outcome = simulate(scenario)
    others = STEP - 4 * 1e-3
    assert outcome.latencies.first_token.p50 == pytest.approx(others + 4 * 6e-2)
    assert outcome.latencies.between_tokens.p50 == pytest.approx(others + 4 * 4e-3)


def test_who_began_before_goes_on_decoding_and_has_no_first_token() -> None:
    outcome = simulate(alone(Request(0.0, 500, 9, made=4), step_tokens=1))
    assert outcome.latencies.first_token.count == 0
    assert outcome.latencies.between_tokens.count == 4
    assert outcome.latencies.completed == 1


def test_sampling_is_a_part_of_each_step() -> None:
    outcome = simulate(replace(alone(Request(0.1, 8, 5)), sampling=Cost(3e-3, 0.0)))
    assert outcome.latencies.between_tokens.p50 == pytest.approx(STEP + 3e-3)


def test_transfers_that_queue_bound_the_pace() -> None:
    """As `Pace.network` says: one direction is in use for all micro-batches."""
    wide = replace(
        ALONE,
        micro_batches=3,
        rows=1,
        attention=Cost(1e-4, 0.0),
        expert=Cost(1e-4, 0.0),
        dispatch=Cost(0.0, 5e-3),
        combine=Cost(0.0, 4e-3),
    )
    queued = simulate(replace(wide, queued_transfers=True))
    assert queued.tokens_per_second == pytest.approx(1 / (4 * 5e-3), rel=0.05)
    assert simulate(wide).tokens_per_second == pytest.approx(3 / (4 * 9.2e-3), rel=0.05)


def test_requests_of_a_dead_node_are_taken_on_with_the_tokens_that_they_have() -> None:
    requests = tuple(Request(0.01 * i + 0.01, 8, 20) for i in range(6))
    scenario = replace(
        ALONE, attention_nodes=2, expert_nodes=2, load=Load(requests), deaths=((0, 0.15),)
    )
    outcome = simulate(replace(scenario, duration=3.0))
    assert outcome.latencies.completed == 6
    assert outcome.tokens_per_second == pytest.approx(6 * 20 / 3.0)
    nobody = replace(scenario, deaths=((0, 0.15), (1, 0.15)))
    assert simulate(nobody).latencies.waiting == 6


def test_a_straggler_is_given_less_and_spoils_the_tail() -> None:
    requests = requests_until(4.0, Poisson(40.0), Fixed(4, 12), random.Random(3))
    scenario = replace(
        ALONE, attention_nodes=4, expert_nodes=2, load=Load(tuple(requests)), duration=4.0
    )
    even = simulate(scenario)
    slow = simulate(replace(scenario, spells=(Spell(1, 10.0),)))
    assert slow.node_tokens[1] < 0.7 * even.node_tokens[1]
    assert slow.latencies.between_tokens.p99 > 2 * even.latencies.between_tokens.p99


def test_spans_are_kept_for_as_long_as_told() -> None:
    outcome = simulate(replace(alone(Request(0.0, 8, 90)), recorded=STEP))
    assert [(s.role, s.layer) for s in outcome.spans] == [
        (role, layer) for layer in range(4) for role in ("attention", "expert")
    ]
    assert all(a.end <= b.start for a, b in pairwise(outcome.spans))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_request_gets_all_its_tokens(
    nodes: int, experts: int, m: int, places: int, computes: bool, seed: int
) -> None:
    chance = random.Random(seed)
    requests = requests_until(0.6, Bursts(30.0), LogNormal(20, 6), chance)
    load = Load(tuple(requests), places, 16, 10_000, computes)
    outcome = simulate(
        replace(
            ALONE,
            attention_nodes=nodes,
            expert_nodes=experts,
            micro_batches=m,
            jitter=0.2,
            load=load,
            duration=60.0,
            seed=seed,
        )
    )
    assert outcome.latencies.completed == len(requests)
    assert outcome.latencies.waiting == 0
    made = sum(request.output_tokens for request in requests)
    assert outcome.tokens_per_second * 60.0 == pytest.approx(made)


@pytest.mark.parametrize("arrivals", [Poisson(50.0), Bursts(50.0, 8.0, 0.5, 0.1)], ids=str)
def test_arrivals_keep_their_rate(arrivals: Poisson | Bursts) -> None:
    times = list(islice(arrivals.times(random.Random(0)), 40_000))
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(50.0, rel=0.05)


def test_bursts_are_burstier_than_a_poisson_process() -> None:
    def spread(arrivals: Poisson | Bursts) -> float:
        counts = [0] * 500
        for at in arrivals.times(random.Random(1)):
            if at >= 500:
                break
            counts[int(at)] += 1
        centre = mean(counts)
        return mean((count - centre) ** 2 for count in counts) / centre

    assert spread(Poisson(20.0)) == pytest.approx(1.0, abs=0.3)
    assert spread(Bursts(20.0)) > 5


@pytest.mark.parametrize("sigma", [0.0, 0.8, 1.3, 2.0, 3.0])
def test_log_normal_lengths_keep_their_mean(sigma: float) -> None:
    """Though none is longer than twenty times it."""
    drawn = list(islice(LogNormal(500, 100, sigma).draws(random.Random(2)), 60_000))
    for lengths, told in zip(zip(*drawn, strict=True), (500, 100), strict=True):
        assert mean(lengths) == pytest.approx(told, rel=0.05)
        assert 1 <= min(lengths) <= max(lengths) <= 20 * told


@pytest.mark.parametrize(
    "lengths",
    [
        Fixed(500, 100),
        LogNormal(500, 100, 0.5),
        LogNormal(500, 100, 2.5),
        Traced([Request(0, 5, 1), Request(0, 50, 99)]),
    ],
    ids=str,
)
def test_a_spread_is_that_of_the_lengths_that_are_drawn(lengths: Lengths) -> None:
    given, made = zip(*islice(lengths.draws(random.Random(3)), 60_000), strict=True)
    spread = lengths.spread
    for value, drawn, power in (
        (spread.input_square, given, 2),
        (spread.output_square, made, 2),
        (spread.output_cube, made, 3),
    ):
        expected = mean(length**power for length in drawn) / mean(drawn) ** power
        assert value == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("moments", [(0.5, 1, 1), (1, 0.5, 1), (1, 2, 3)])
def test_moments_that_no_lengths_have_are_refused(moments: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="no lengths have the moments"):
        Spread(*moments)


def test_requests_under_way_are_anywhere_in_their_output() -> None:
    under_way = requests_under_way(
        4000, Traced([Request(0, 5, 1), Request(0, 5, 99)]), random.Random(0)
    )
    long = [request for request in under_way if request.output_tokens == 99]
    assert len(long) / len(under_way) == pytest.approx(0.99, abs=0.01)
    assert mean(request.made for request in long) == pytest.approx(49.5, abs=2)


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:47.1805900,396,109
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,Conversation log
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1]}

{"timestamp": 0, "input_length": 7319, "output_length": 490, "hash_ids": []}
"""


@pytest.mark.parametrize(
    ("text", "requests"),
    [
        (AZURE, [Request(0.0, 374, 44), Request(0.5, 396, 109)]),
        (BURST, [Request(0.0, 472, 18), Request(113.0, 417, 276)]),
        (MOONCAKE, [Request(0.0, 7319, 490), Request(3.0, 6755, 500)]),
    ],
    ids=["azure", "burstgpt", "mooncake"],
)
def test_public_traces_are_read(tmp_path: Path, text: str, requests: list[Request]) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    found = read_trace(path)
    assert [(r.input_tokens, r.output_tokens) for r in found] == [
        (r.input_tokens, r.output_tokens) for r in requests
    ]
    assert [r.at for r in found] == pytest.approx([r.at for r in requests])
    assert [r.at for r in stretched(found, 2.0)] == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n", r"columns \['a', 'b'\]; known layouts have TIMESTAMP, ContextTokens"),
        (AZURE + "yesterday,1,1\n", "line 4.*yesterday"),
        ('{"timestamp": 0}\n', "line 1: KeyError\\('input_length'\\)"),
        ('{"timestamp": 0\n', "line 1: JSONDecodeError"),
        (AZURE.splitlines()[0], "has no request"),
    ],
)
def test_what_is_no_trace_says_where(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_trace(path)
    with pytest.raises(ConfigError, match="can't be read"):
        read_trace(tmp_path / "missing")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Poisson(0.0), "more than 0"),
        (lambda: Bursts(1.0, 0.5), "factor of at least 1"),
        (lambda: Fixed(0, 5), "at least 1 token"),
        (lambda: LogNormal(5, 5, 9.0), "0 to 3"),
        (lambda: Request(-1.0, 5, 5), "0 seconds or later"),
        (lambda: Request(0.0, 5, 5, made=5), "fewer made"),
        (lambda: Load((), places=0), "at least 1"),
        (lambda: Load((Request(0, 9, 9),), cache_tokens=17), "18 tokens never fits"),
        (lambda: replace(ALONE, choosing_each=(0.5, 0.5)), "2 shares of rows for 1"),
        (lambda: stretched([Request(0, 1, 1)], 1.0), "two requests"),
    ],
)
def test_what_cannot_be_is_refused(make: object, problem: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=problem):
        make()


def test_percentiles_lie_between_values() -> None:
    assert Percentiles.of([]) == Percentiles()
    some = Percentiles.of([float(i) for i in range(101)])
    assert (some.count, some.mean, some.p50, some.p90, some.p99) == (101, 50, 50, 90, 99)
