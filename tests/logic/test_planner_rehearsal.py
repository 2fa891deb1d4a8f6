"""Plans in the simulator: as predicted where the closed form holds, and worse where it lies."""

import json
import random
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import pytest

from megainfer.compute.selection import Precision
from megainfer.errors import ConfigError
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.costs.step import Step
from megainfer.planner.hardware import Device
from megainfer.planner.question import Question
from megainfer.planner.rehearsal import Pattern, Rehearsal, Traffic, rehearse
from megainfer.planner.rehearsal.stages import StepTimes
from megainfer.planner.report.document import document
from megainfer.planner.search.costs import AttentionCosts
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.planning import Planner
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.predictor import Predictor
from megainfer.planner.search.space import Space
from megainfer.planner.search.workload import Objective, Prefill, Target, Workload
from megainfer.simulator import (
    Latencies,
    Load,
    Request,
    Scenario,
    Work,
    simulate_together,
)
from megainfer.simulator.arrivals import requests_under_way
from megainfer.simulator.lengths import Fixed, LogNormal, Spread
from tests.support.plan_costs import MadeUpCosts, made_up_device

COSTS = MadeUpCosts()
DEVICE = made_up_device("made up")
ELSEWHERE = Workload(100, 50, Prefill.ELSEWHERE)
CALM = Traffic(jitter=0.0)


def together(rows: int, groups: int = 2, experts: int = 2) -> Deployment:
    nodes = Nodes(DEVICE, 1, groups), Nodes(DEVICE, groups // experts, experts)
    return Deployment(*nodes, 1, rows, together=True)


def deployment(rows: int, m: int = 3, attention: int = 1, experts: int = 2) -> Deployment:
    return Deployment(Nodes(DEVICE, 1, attention), Nodes(DEVICE, 1, experts), m, rows)


def predicted(plan: Deployment, workload: Workload = ELSEWHERE) -> Prediction:
    return Predictor(COSTS, workload).prediction(plan, None)


def tried(
    plan: Deployment, workload: Workload = ELSEWHERE, traffic: Traffic = CALM
) -> tuple[Prediction, Rehearsal]:
    prediction = predicted(plan, workload)
    return prediction, rehearse(COSTS, prediction, workload, traffic)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("attention", [1, 2, 4])
def test_without_jitter_the_closed_form_is_kept(m: int, attention: int) -> None:
    prediction, rehearsal = tried(deployment(32, m, attention))
    assert rehearsal.tpot_seconds == pytest.approx(prediction.tpot_seconds, rel=0.05)
    made = prediction.instance_tokens_per_second
    assert rehearsal.tokens_per_second == pytest.approx(made, rel=0.05)


def test_who_sleeps_while_the_other_role_works_is_woken_in_both() -> None:
    """By the closed form and in the simulator, where roles take turns; who works all the time never
    sleeps."""
    plan = deployment(32, m=1)
    waits = predicted(plan).stages.waits(COSTS.moe_layers, 1)
    sleepy = replace(COSTS, awake_seconds=min(waits) / 2, waking_seconds=1e-3)
    predictor = Predictor(sleepy, ELSEWHERE)
    woken = predictor.prediction(plan, None)
    more = 2 * COSTS.moe_layers * 1e-3
    assert woken.tpot_seconds == pytest.approx(predicted(plan).tpot_seconds + more)
    rehearsal = rehearse(sleepy, woken, ELSEWHERE, CALM)
    assert rehearsal.tpot_seconds == pytest.approx(woken.tpot_seconds, rel=0.02)
    patient = replace(sleepy, awake_seconds=1.01 * max(waits))
    assert Predictor(patient, ELSEWHERE).prediction(plan, None) == predicted(plan)
    turns = deployment(32, m=4)
    busiest = min(predicted(turns).stages.waits(COSTS.moe_layers, 4))
    assert busiest == pytest.approx(0.0, abs=1e-12)
    longest = replace(sleepy, waking_seconds=sleepy.awake_seconds / 2)
    assert Predictor(longest, ELSEWHERE).pace(turns).seconds == predicted(turns).tpot_seconds


@pytest.mark.parametrize(("groups", "experts"), [(1, 1), (2, 2), (8, 4), (32, 8)])
@pytest.mark.parametrize("workload", [ELSEWHERE, Workload(100, 50)], ids=["elsewhere", "beside"])
def test_colocated_plans_keep_the_closed_form_too(
    groups: int, experts: int, workload: Workload
) -> None:
    """Groups that keep step; of 32, eight stand for all. Prompts come to one or the other, and all
    wait for it: the closed form doesn't know that."""
    prediction, rehearsal = tried(together(32, groups, experts), workload)
    waits = 1.2 if workload.prefill is Prefill.BESIDE else 1.0
    slower = rehearsal.tpot_seconds / prediction.tpot_seconds
    assert 0.95 < slower < 1.05 * waits
    made = prediction.instance_tokens_per_second
    assert rehearsal.tokens_per_second * slower == pytest.approx(made, rel=0.01)
    idle = prediction.pace.idle()
    assert rehearsal.attention_idle == pytest.approx(idle[0], abs=0.1)
    assert rehearsal.expert_idle == pytest.approx(idle[1], abs=0.1)
    assert rehearsal.latencies.between_tokens.p50 <= 1.1 * waits * prediction.tpot_seconds
    if prediction.ttft_seconds is not None:
        assert rehearsal.latencies.first_token.p50 < 2 * prediction.ttft_seconds


def test_all_groups_wait_for_the_slowest() -> None:
    plan = together(32, 8, 8)
    _, calm = tried(plan)
    _, slow = tried(plan, traffic=replace(CALM, straggler=3.0))
    _, shaky = tried(plan, traffic=replace(CALM, jitter=0.3))
    assert slow.tokens_per_second < calm.tokens_per_second
    assert shaky.tokens_per_second < calm.tokens_per_second
    # The attention of one group takes three times as long, and that of the others waits.
    prediction = predicted(plan)
    added = 2 * prediction.pace.attention
    assert slow.tpot_seconds == pytest.approx(calm.tpot_seconds + added, rel=0.05)


@pytest.mark.parametrize("rigged", ["apart", "colocated"])
def test_the_best_is_the_best_as_simulated(rigged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kind makes a quarter of what was predicted."""

    def made(costs: Any, plan: Prediction, *_: Any) -> Rehearsal:
        share = 0.25 if plan.deployment.together is (rigged == "colocated") else 1.0
        tokens = share * plan.instance_tokens_per_second
        return Rehearsal(tokens, plan.tpot_seconds, 0, 0, 0, Latencies(), (1, 1))

    monkeypatch.setattr("megainfer.planner.question.rehearse", made)
    space = Space((1,), 2, 64)
    planner = Planner.of(COSTS, Inventory(((DEVICE, 8),)), ELSEWHERE, space)
    question = Question("any", Precision("bfloat16"), planner, Target(1.0), Objective.GPU)
    planned = question.planned(2, 2, CALM)
    predicted_ratio = planned.predicted.ratio
    assert predicted_ratio is not None
    assert 0.3 < predicted_ratio < 3, "a quarter turns either over"
    assert planned.best.deployment.together is (rigged == "apart")
    assert planned.simulated_ratio == pytest.approx(
        predicted_ratio * (0.25 if rigged == "apart" else 4)
    )
    told = document(planned)["verdict"]
    assert told["apart_by"] == predicted_ratio
    assert told["apart_by_simulated"] == planned.verdict.ratio
    assert planned.verdict.sentence.startswith(
        "apart doesn't pay here" if rigged == "apart" else "apart wins by"
    )
    untried = question.planned(2, 0, CALM)
    assert untried.verdict == untried.predicted
    assert untried.simulated_ratio is None


def test_roles_together_need_a_load() -> None:
    with pytest.raises(ConfigError, match="with a load and 1 micro-batch, not 2"):
        simulate_together(Scenario(micro_batches=2))


def test_requests_of_groups_that_keep_step_get_all_their_tokens() -> None:
    requests = tuple(Request(0.01 * i, 20 + i, 1 + i % 7) for i in range(30))
    scenario = Scenario(
        attention_nodes=3,
        micro_batches=1,
        layers=4,
        load=Load(requests, places=4, step_tokens=16),
        duration=60.0,
        warm_up=0.0,
    )
    outcome = simulate_together(scenario)
    assert outcome.latencies.completed == len(requests)
    made = sum(request.output_tokens for request in requests)
    assert outcome.tokens_per_second * 60 == pytest.approx(made)
    assert sum(outcome.node_tokens) == pytest.approx(made)
    assert all(tokens > 0 for tokens in outcome.node_tokens)


def test_a_cache_holds_the_sequences_of_a_plan_whatever_their_lengths() -> None:
    """In nearly all moments of a steady load; the mean alone would do in half of them. Of few
    sequences whose lengths spread widely one very long one is more often too much."""
    chance = random.Random(5)
    for lengths in (Fixed(500, 400), LogNormal(500, 400, 0.6), LogNormal(500, 400, 1.0)):
        workload = replace(Workload(500, 400), spread=lengths.spread)
        for count, certain in ((4, 0.92), (32, 0.96), (200, 0.97)):
            every = requests_under_way(200 * count, lengths, chance)
            held = [
                sum(request.input_tokens + request.made for request in every[at : at + count])
                for at in range(0, len(every), count)
            ]
            if count == 200:
                assert mean(held) == pytest.approx(count * workload.context, rel=0.03)
            most = workload.cache_tokens(count)
            assert sum(own <= most for own in held) >= certain * len(held)
            assert most > count * workload.context
            if lengths.spread == Spread():
                assert most <= count * (500 + 400)


def test_prompts_beside_take_the_predicted_part_of_steps() -> None:
    prediction, rehearsal = tried(deployment(32), Workload(100, 50))
    assert rehearsal.tpot_seconds == pytest.approx(prediction.tpot_seconds, rel=0.08)
    assert prediction.ttft_seconds is not None
    assert rehearsal.latencies.first_token.p50 < 2 * prediction.ttft_seconds


def test_fewer_nodes_stand_for_many() -> None:
    """64 and 8 nodes are more than are simulated; the experts have the rows of all."""
    prediction, rehearsal = tried(deployment(16, 3, attention=64, experts=8))
    assert rehearsal.nodes < (64, 8)
    assert rehearsal.tokens_per_second == pytest.approx(
        prediction.instance_tokens_per_second, rel=0.05
    )


@dataclass(frozen=True)
class _LongSampling:
    """An attention node that needs long to find tokens, in one piece."""

    usual: AttentionCosts

    def layer(self, step: Step, expert_nodes: int, spares: int = 0) -> Time:
        return self.usual.layer(step, expert_nodes, spares)

    def outside(self, step: Step) -> Time:
        return Time(fixed=5e-3)


@dataclass(frozen=True)
class _LongSamplingCosts(MadeUpCosts):
    def attention(self, device: Device, tp: int) -> Any:
        return _LongSampling(super().attention(device, tp))


def test_experts_run_dry_while_tokens_are_found() -> None:
    """With nobody to overlap with, 5 ms of each micro-batch's step are the experts' too, less what
    waits for them then."""
    plan = deployment(32, 3, attention=1, experts=1)
    usual = predicted(plan)
    rehearsal = rehearse(_LongSamplingCosts(), usual, ELSEWHERE, CALM)
    waiting = 2 * usual.stages.experts.total
    assert rehearsal.tpot_seconds > usual.pace.experts + 3 * (5e-3 - waiting) * 0.9


def test_a_straggler_and_jitter_cost_throughput() -> None:
    plan = deployment(32, 2, attention=4)
    _, calm = tried(plan)
    _, slow = tried(plan, traffic=replace(CALM, straggler=30.0))
    _, shaky = tried(plan, traffic=replace(CALM, jitter=0.3))
    assert slow.tokens_per_second < calm.tokens_per_second
    assert shaky.tokens_per_second < calm.tokens_per_second


def test_a_plan_that_makes_nothing_is_told_as_that() -> None:
    """Its only attention node is a hundred times slower: no tighter limit would help."""
    costs, space = MadeUpCosts(attention_bytes=4e9), Space((1,), 1, 4)
    planner = Planner.of(costs, Inventory(((DEVICE, 2),)), ELSEWHERE, space)
    question = Question("any", Precision("bfloat16"), planner, Target(1.0), Objective.GPU)
    planned = question.planned(1, 1, replace(CALM, straggler=100.0))
    assert planned.apart.rehearsals[0].tokens_per_second == 0
    assert planned.apart.target == planned.target
    told = document(planned)["plans"][0]["simulated"]
    assert told["tpot_seconds"] is None
    json.dumps(told, allow_nan=False)


def test_the_load_is_of_the_tokens_that_are_made_here() -> None:
    """The pool that computed a prompt has made the first of two tokens."""
    traffic = replace(CALM, share=0.5)
    prediction, rehearsal = tried(deployment(16), Workload(100, 2, Prefill.ELSEWHERE), traffic)
    seconds = 0.8 * 60 * prediction.tpot_seconds
    ended = rehearsal.latencies.completed
    assert ended == pytest.approx(rehearsal.offered * seconds, rel=0.15)


def test_a_chunk_of_a_prompt_reads_what_its_last_row_sees() -> None:
    seen = StepTimes(lambda step: Time(fixed=step.prefill_contexts.last), 512)
    # 100 rows after 50: the first sees 51 positions, the last 150.
    assert seen.of_work(Work(100, 100, pairs=sum(range(51, 151)))) == 150
    # One of each of two prompts; none.
    assert seen.of_work(Work(2, 2, pairs=2)) == 1
    assert seen.of_work(Work(3, context=30, tokens=3)) == 1


def test_bursts_and_long_answers_spread_the_first_token() -> None:
    plan, beside = deployment(8), Workload(300, 20)
    _, even = tried(plan, beside)
    _, bursty = tried(plan, beside, replace(CALM, pattern=Pattern.BURSTS, burst_factor=10.0))
    assert bursty.latencies.first_token.p99 > even.latencies.first_token.p99


def test_a_trace_is_followed_at_the_rate_that_is_asked_for() -> None:
    trace = tuple(Request(7.0 * i, 100, 50) for i in range(9))
    _, rehearsal = tried(
        deployment(16), traffic=replace(CALM, pattern=Pattern.TRACE, trace=trace, share=0.5)
    )
    assert rehearsal.offered == pytest.approx(0.5 * rehearsal.tokens_per_second)
    assert rehearsal.latencies.completed > 0


def test_equal_questions_have_equal_answers() -> None:
    plan = deployment(8)
    assert tried(plan, traffic=Traffic()) == tried(plan, traffic=Traffic())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"share": 0.0}, "share of the throughput"),
        ({"share": 1.5}, "share of the throughput"),
        ({"jitter": 0.5}, "jitter must be"),
        ({"straggler": 0.5}, "1 to 100 times slower"),
        ({"pattern": Pattern.TRACE}, "at least two requests"),
    ],
)
def test_what_cannot_be_tried_is_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        replace(CALM, **changes)
