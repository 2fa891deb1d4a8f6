"""Plans in the simulator: as predicted where the closed form holds, and worse where it lies."""

import json
from dataclasses import dataclass, replace
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
from megainfer.simulator import Request, Work
from tests.support.plan_costs import MadeUpCosts, made_up_device

COSTS = MadeUpCosts()
DEVICE = made_up_device("made up")
ELSEWHERE = Workload(100, 50, Prefill.ELSEWHERE)
CALM = Traffic(jitter=0.0)


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

    def layer(self, step: Step, expert_nodes: int) -> Time:
        return self.usual.layer(step, expert_nodes)

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
    assert planned.rehearsals[0].tokens_per_second == 0
    assert planned.planned_for == planned.target
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
