"""What the gather is worth: the real PingPong and Gather among simulated nodes.

The design's setting: 8 attention and 4 expert nodes, experts bound by reading their weights, m = 2,
stage times that jitter by 10 %. Fewer layers and less time than `python -m megainfer.simulator`.
"""

from dataclasses import replace

import pytest

from megainfer.errors import ConfigError
from megainfer.planner.formulas import layer_period
from megainfer.simulator import Chance, Cost, Outcome, Policy, Scenario, Spell, simulate
from megainfer.simulator.__main__ import SCENARIOS, table

EVEN = Scenario(layers=12, duration=0.7, warm_up=0.2)
UNEVEN = replace(EVEN, unevenness=1.3)
DEEP = replace(EVEN, layers=24, duration=1.0, warm_up=0.3)


def throughput(scenario: Scenario, policy: Policy = "gather") -> float:
    return simulate(replace(scenario, policy=policy)).tokens_per_second


@pytest.fixture(scope="module")
def even() -> Outcome:
    return simulate(EVEN)


@pytest.fixture(scope="module")
def deep() -> Outcome:
    return simulate(DEEP)


def test_equal_scenarios_have_equal_outcomes() -> None:
    short = replace(UNEVEN, duration=0.1, warm_up=0.0, zero_rows=0.1)
    assert simulate(short) == simulate(short)
    assert simulate(short) != simulate(replace(short, seed=1))


def test_without_jitter_one_pair_keeps_the_papers_layer_period() -> None:
    costs = Scenario(
        attention_nodes=1,
        expert_nodes=1,
        micro_batches=3,
        attention=Cost(1e-3, 0.0),
        expert=Cost(0.8e-3, 0.0),
        transfer=0.2e-3,
        jitter=0.0,
    )
    period = layer_period(1e-3, 0.8e-3, 0.2e-3, 3)
    expected = 3 * costs.rows / (period * costs.layers)
    assert simulate(costs).tokens_per_second == pytest.approx(expected, rel=0.01)


def test_waiting_is_as_good_as_lockstep_and_well_above_greedy(even: Outcome) -> None:
    assert even.tokens_per_second > 0.97 * throughput(EVEN, "lockstep")
    assert even.tokens_per_second > 1.2 * throughput(EVEN, "greedy")
    assert even.sources_per_batch > 7.5


def test_also_with_uneven_attention_nodes() -> None:
    scenario = replace(DEEP, unevenness=1.3)
    ours = throughput(scenario)
    assert ours > 0.97 * throughput(scenario, "lockstep")
    assert ours > 1.25 * throughput(scenario, "greedy")


@pytest.mark.parametrize("m", [1, 4])
def test_for_any_number_of_micro_batches(m: int) -> None:
    scenario = replace(UNEVEN, micro_batches=m)
    assert throughput(scenario) > 0.95 * throughput(scenario, "lockstep")


@pytest.mark.parametrize(("factor", "kept", "own"), [(3.0, 0.8, 0.4), (10.0, 0.85, 0.5)])
def test_a_straggler_slows_itself_and_not_the_others(
    deep: Outcome, factor: float, kept: float, own: float
) -> None:
    scenario = replace(DEEP, spells=(Spell(3, factor),))
    outcome = simulate(scenario)
    others = [tokens for node, tokens in enumerate(outcome.node_tokens) if node != 3]
    usual = deep.node_tokens[0]
    assert min(others) > kept * usual
    assert outcome.node_tokens[3] > own * usual / factor
    assert outcome.tokens_per_second > 1.5 * throughput(scenario, "lockstep")


def test_a_spell_of_slowness_is_over_when_it_is_over(even: Outcome) -> None:
    outcome = simulate(replace(EVEN, spells=(Spell(3, 10.0, 0.0, 0.25),)))
    assert outcome.tokens_per_second > 0.9 * even.tokens_per_second


def test_rare_stalls_cost_little(even: Outcome) -> None:
    scenario = replace(EVEN, stalls=Chance(0.001, 10.0))
    assert throughput(scenario) > 0.9 * throughput(scenario, "lockstep")


def test_messages_without_rows_keep_the_throughput() -> None:
    scenario = replace(UNEVEN, zero_rows=0.1)
    assert throughput(scenario) > 0.95 * throughput(scenario, "lockstep")


def test_deaths_leave_the_others_at_full_speed(even: Outcome) -> None:
    outcome = simulate(replace(EVEN, deaths=((1, 0.3), (5, 0.4))))
    assert outcome.node_tokens[0] > 0.95 * even.node_tokens[0]
    assert outcome.node_tokens[1] < 0.3 * even.node_tokens[1]


def test_late_joiners_come_up_to_speed(even: Outcome) -> None:
    outcome = simulate(replace(EVEN, joins=((1, 0.25), (5, 0.3))))
    assert outcome.node_tokens[0] > 0.9 * even.node_tokens[0]
    assert outcome.node_tokens[5] > 0.6 * even.node_tokens[5]


def test_resting_micro_batches_hold_nobody_up() -> None:
    scenario = replace(UNEVEN, rests=0.1)
    assert throughput(scenario) > 1.3 * throughput(scenario, "greedy")


@pytest.mark.parametrize("seed", range(4))
def test_everything_at_once_ends_in_bounded_time_with_nothing_forgotten(seed: int) -> None:
    outcome = simulate(
        replace(
            UNEVEN,
            attention_nodes=5,
            expert_nodes=3,
            zero_rows=0.2,
            rests=0.1,
            stalls=Chance(0.01, 10.0),
            long_steps=Chance(0.05, 5.0),
            spells=(Spell(0, 3.0, 0.2, 0.4),),
            joins=((4, 0.3),),
            deaths=((2, 0.5),),
            seed=seed,
        )
    )
    assert min(outcome.node_tokens) > 0
    assert max(outcome.longest_wait, outcome.unanswered) < 0.3


def test_what_lockstep_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="lockstep knows no joins"):
        replace(EVEN, policy="lockstep", joins=((1, 0.1),))
    with pytest.raises(ConfigError, match=r"warm_up 3\.0 s must be less"):
        Scenario(warm_up=3.0)


def test_the_table_has_a_line_a_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(EVEN, attention_nodes=2, duration=0.05, warm_up=0.0, rests=0.5)
    monkeypatch.setattr("megainfer.simulator.__main__.SCENARIOS", {"tiny": tiny})
    head, line = table()
    assert head.split()[-3:] == ["gather", "greedy", "lockstep"]
    assert line.split()[0] == "tiny"
    assert line.split()[-1] == "-", "lockstep knows no rests"
    assert all(cell.isdigit() for cell in line.split()[1:3])
    assert SCENARIOS
