"""Algorithm 1 of MegaScale-Infer, as published: what it keeps, and that nothing better was left."""

import json

import pytest
from typer.testing import CliRunner

from megainfer.cli import app
from megainfer.compute.selection import Precision
from megainfer.errors import ConfigError
from megainfer.models.registry import load_spec
from megainfer.models.sources import attention_weight_bytes
from megainfer.planner.algorithm_1 import Algorithm1, Line, PaperPlan, balanced
from megainfer.planner.costs import ModelCosts
from megainfer.planner.hardware import paper_devices
from megainfer.planner.search.model_stages import ModelStages
from megainfer.planner.search.workload import Prefill, Workload
from megainfer.planner.shapes import SHAPES, named_shape

DEVICES = paper_devices()
PAIR = (DEVICES["H20"], DEVICES["L40S"])
SLO = 0.15
DECODE = Workload(571, 159, Prefill.ELSEWHERE)


def algorithm(shape: str, slo: float = SLO) -> Algorithm1:
    folder = named_shape(shape)
    assert folder is not None
    costs = ModelCosts.of(load_spec(folder), Precision("bfloat16"))
    return Algorithm1(ModelStages(costs), DECODE, slo)


@pytest.fixture(scope="module", params=SHAPES)
def found(request: pytest.FixtureRequest) -> tuple[Algorithm1, tuple[PaperPlan, ...]]:
    own = algorithm(request.param)
    return own, own.plans(PAIR)


def test_h20_for_attention_and_l40s_for_experts_are_best_by_cost(
    found: tuple[Algorithm1, tuple[PaperPlan, ...]],
) -> None:
    best = found[1][0].deployment
    assert (best.attention.device.name, best.experts.device.name) == ("H20", "L40S")
    assert len(found[1]) == 4, "each pair of kinds has its best"


def breaks(own: Algorithm1, plan: PaperPlan, rows: int) -> bool:
    """Whether a limit, with so many sequences of a micro-batch on an attention node."""
    spec, deployment = own.stages.model.spec, plan.deployment
    attention, m = deployment.attention, deployment.micro_batches
    line_a = own.line_a(attention.device, attention.tp)
    line_e = own.line_e(deployment.experts.device, deployment.experts.tp)
    assert attention.count == balanced(line_a, line_e, spec.num_experts, spec.top_k)
    tokens = rows * m * DECODE.context
    held = tokens * spec.kv_bytes_per_token(2) + attention_weight_bytes(spec, 2)
    b_e = rows * attention.count * spec.top_k / spec.num_experts
    slowest = max(line_a.at(rows), line_e.at(b_e))
    road = own.stages.road(attention, deployment.experts)
    stalls = m * slowest < 2 * (slowest + road.dispatch(rows).total) * (1 - 1e-9)
    took = m * len(spec.layers) * slowest
    return stalls or took > SLO or held >= attention.tp * attention.device.memory_bytes


def test_limits_are_kept_and_one_more_row_breaks_one(
    found: tuple[Algorithm1, tuple[PaperPlan, ...]],
) -> None:
    own, plans = found
    for plan in plans:
        assert not breaks(own, plan, plan.deployment.rows)
        assert breaks(own, plan, plan.deployment.rows + 1)


def test_the_objective_is_the_published_one(
    found: tuple[Algorithm1, tuple[PaperPlan, ...]],
) -> None:
    own, plans = found
    for plan in plans:
        deployment, layers = plan.deployment, own.stages.moe_layers
        slowest = max(plan.t_a, plan.t_e)
        total = plan.t_a + plan.t_e + 2 * plan.t_c
        total += slowest * (deployment.micro_batches * layers - 1)
        price = sum(role.devices * role.device.price for role in deployment.roles)
        assert plan.total_seconds == pytest.approx(total)
        assert plan.per_price == pytest.approx(deployment.batch / total / price)
        assert deployment.experts.count == own.stages.num_experts
        assert deployment.micro_batches in (3, 4)
    assert [p.per_price for p in plans] == sorted((p.per_price for p in plans), reverse=True)


def test_a_line_is_found_again() -> None:
    line = Line.through(lambda rows: 3e-6 * rows + 1e-4)
    assert line.at(100) == pytest.approx(4e-4)


def test_a_latency_that_no_plan_keeps_is_told() -> None:
    with pytest.raises(
        ConfigError, match=r"no plan with 1 ms .* one expert a node.* allow more time"
    ):
        algorithm("dbrx", 1e-3).plans(PAIR)


def test_the_command_prints_it() -> None:
    runner = CliRunner(env={"COLUMNS": "120", "TERM": "dumb"})
    args = ["plan", "dbrx", "--paper", "--gpus", "H20:1,L40S:1"]
    text = runner.invoke(app, args).output
    assert "dbrx by Algorithm 1 of MegaScale-Infer" in text
    first, *_ = json.loads(runner.invoke(app, [*args, "--json"]).output)
    assert (first["attention"]["device"], first["experts"]["nodes"]) == ("H20", 16)
