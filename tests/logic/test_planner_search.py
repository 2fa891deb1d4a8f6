"""The search finds what trying everything finds, and what it says holds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.compute.selection import Precision
from megainfer.errors import ConfigError
from megainfer.planner.costs import ModelCosts, Popularity
from megainfer.planner.hardware import Device, load_devices
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.model_stages import ModelStages
from megainfer.planner.search.planning import Answer, Planner
from megainfer.planner.search.prediction import Limit, Prediction
from megainfer.planner.search.predictor import Predictor
from megainfer.planner.search.rates import rate_bound, rows_grid
from megainfer.planner.search.space import FEW_NODES, Space, colocated, families, node_counts
from megainfer.planner.search.workload import Objective, Prefill, Target, Workload
from tests.support.plan_costs import MadeUpCosts, made_up_device
from tests.support.public_models import public_spec

DECODE = Workload(571, 159, Prefill.ELSEWHERE)
BIG = made_up_device("big", 96, 4e12, 148e12, 50e9, 1.85)
FAST = made_up_device("fast", 48, 864e9, 362e12, 50e9, 1.08)
SMALL_SPACE = Space(tps=(1, 2), most_micro_batches=3, most_rows=300)


def everything(planner: Planner) -> Iterator[Deployment]:
    """All deployments of a small space."""
    costs, space = planner.predictor.costs, planner.space
    undivided = families(space, planner.inventory, costs, fitting=False)
    for family in (own for several in undivided for own in several.split()):
        for nodes in range(1, family.most_nodes(planner.inventory) + 1):
            for m in range(1, space.most_micro_batches + 1):
                for rows in space.rows:
                    yield family.deployment(nodes, m, rows)
    for baseline in colocated(space, planner.inventory, costs):
        for rows in space.rows:
            yield replace(baseline, rows=rows)


def by_trying(planner: Planner, target: Target, objective: Objective) -> tuple[float, float]:
    """The best value apart and colocated; 0 without any."""
    best = {False: 0.0, True: 0.0}
    for plan in everything(planner):
        if planner.predictor.limit(plan, target) is None:
            value = planner.predictor.prediction(plan, None).value(objective)
            best[plan.together] = max(best[plan.together], value)
    return best[False], best[True]


def value(plans: tuple[Prediction, ...], objective: Objective) -> float:
    return plans[0].value(objective) if plans else 0.0


@given(
    costs=st.builds(
        MadeUpCosts,
        num_experts=st.sampled_from((3, 4)),
        attention_bytes=st.floats(5e7, 5e8),
        expert_bytes=st.floats(1e8, 8e8),
        kv_bytes=st.floats(5e2, 2e4),
        row_bytes=st.floats(1e3, 5e4),
        kinks=st.lists(st.integers(1, 100), max_size=3).map(tuple),
        hot=st.sampled_from((1.0, 1.0, 1.5, 3.0)),
    ),
    counts=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    gigabytes=st.floats(8, 100),
    tpot=st.sampled_from((0.01, 0.05, 0.2)),
    ttft=st.sampled_from((None, 0.5)),
    objective=st.sampled_from(Objective),
    prefill=st.sampled_from(Prefill),
)
@settings(max_examples=15, deadline=None)
def test_it_finds_what_trying_everything_finds(
    costs: MadeUpCosts,
    counts: tuple[int, int],
    gigabytes: float,
    tpot: float,
    ttft: float | None,
    objective: Objective,
    prefill: Prefill,
) -> None:
    big = made_up_device("big", gigabytes, 4e12, 148e12, 50e9, 1.85)
    inventory = Inventory(((big, counts[0]), (FAST, counts[1])))
    space = Space(tps=(1, 2), most_micro_batches=2, most_rows=20, spares=(0, 1, 2))
    planner = Planner.of(costs, inventory, Workload(571, 159, prefill), space)
    target = Target(tpot, ttft)
    apart, together = by_trying(planner, target, objective)
    if apart == together == 0:
        with pytest.raises(ConfigError, match=r"the model fits nowhere|no plan keeps"):
            planner.plan(target, objective)
        return
    answer = planner.plan(target, objective, top=3)
    assert value(answer.apart, objective) == pytest.approx(apart, rel=1e-9)
    assert value(answer.together, objective) == pytest.approx(together, rel=1e-9)


@dataclass(frozen=True)
class SlowLinks(MadeUpCosts):
    """Messages take a thousand times as long within a scale-up domain."""

    def road(self, attention: Nodes, experts: Nodes) -> Any:
        near = attention.devices + experts.devices <= attention.device.link.devices
        of = MadeUpCosts(row_bytes=self.row_bytes * (1000 if near else 1))
        return of.road(attention, experts)


def test_plans_beyond_a_domain_of_slow_links_are_found() -> None:
    device = made_up_device("big", 96, 4e12, 148e12, 50e9, domain=5)
    space = Space(tps=(1,), most_micro_batches=2, most_rows=20)
    planner = Planner.of(SlowLinks(), Inventory(((device, 9),)), DECODE, space)
    best, _ = by_trying(planner, Target(0.2), Objective.GPU)
    found = planner.plan(Target(0.2), Objective.GPU, top=1).apart[0]
    assert found.deployment.attention.count > 1
    assert found.per_gpu == pytest.approx(best)


def test_a_step_that_ends_a_prompt_is_not_taken_for_a_usual_one() -> None:
    workload = Workload(2000, 200)
    usual, full = workload.step(100), workload.prompt_step(100)
    assert usual.prefill_rows == full.prefill_rows
    predictor = Predictor(MadeUpCosts(), workload)
    one = Deployment(Nodes(BIG, 1, 1), Nodes(FAST, 1, 8), 1, 100)
    before, after = (predictor.stages(one, step, usual).outside for step in (usual, full))
    assert before.total < after.total


@given(
    steps=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 9)), min_size=1, max_size=6),
    slope=st.floats(0.001, 1),
    end=st.floats(1, 200),
)
@settings(max_examples=200, deadline=None)
def test_no_rows_exceed_their_bound(
    steps: list[tuple[float, float]], slope: float, end: float
) -> None:
    def seconds(rows: float) -> float:
        jumps = sum(height for at, height in steps if rows > at)
        return inf if rows > end else 1 + slope * rows + jumps

    rates = [rows / seconds(rows) for rows in (1 + i * 0.25 for i in range(400)) if rows <= 100]
    bound = rate_bound(seconds, 100, tolerance=0.03)
    assert max(rates) <= bound * (1 + 1e-12)
    # The best rows lie before a jump, or at the end.
    edges = [rows for rows in (*(at for at, _ in steps), end, 100) if 1 <= rows <= 100]
    best = max(*rates, *(rows / seconds(rows) for rows in edges))
    assert bound <= 1.031 * best


def test_the_grid_of_rows_is_dense() -> None:
    grid = rows_grid(8192)
    assert grid[:64] == tuple(range(1, 65))
    assert all(b <= max(a + 1, a * 1.03) for a, b in pairwise(grid))


def test_expert_nodes_are_the_fewest_for_what_the_fullest_holds() -> None:
    assert node_counts(384)[-3:] == (128, 192, 384)
    for experts in (1, 7, 16, 60):
        fullest = [-(-experts // nodes) for nodes in node_counts(experts)]
        assert sorted(set(fullest), reverse=True) == fullest, "each holds fewer than the last"


def test_where_experts_are_not_alike_all_numbers_of_nodes_are_looked_at() -> None:
    assert node_counts(12, alike=False) == tuple(range(1, 13))
    assert set(node_counts(60, alike=False)) == {*node_counts(60), *range(1, FEW_NODES + 1)}


def test_spare_experts_are_searched_where_some_are_popular() -> None:
    costs = MadeUpCosts(hot=4.0, num_experts=16, expert_bytes=8e8)
    best = plan(costs, (BIG, 4), (FAST, 16), objective=Objective.COST).apart[0].deployment
    assert best.experts.spares > 0
    assert "spare experts each" in best.describe()
    none = Space(tps=(1, 2), most_micro_batches=3, most_rows=300, spares=(0,))
    bare = plan(costs, (BIG, 4), (FAST, 16), objective=Objective.COST, space=none).apart[0]
    found = plan(costs, (BIG, 4), (FAST, 16), objective=Objective.COST).apart
    assert found[0].per_price > 1.05 * bare.per_price
    kinds = [(p.deployment.attention.device, p.deployment.attention.tp,
              replace(p.deployment.experts, spares=0)) for p in found]  # fmt: skip
    assert len(set(kinds)) == len(kinds), "of plans that differ in spares alone the best is told"
    alike = plan(replace(costs, hot=1.0), (BIG, 4), (FAST, 16))
    assert all(p.deployment.experts.spares == 0 for p in alike.apart + alike.together)


def test_colocated_plans_have_more_devices_than_experts_too() -> None:
    inventory, space = Inventory(((FAST, 16),)), Space(tps=(1, 2, 4))
    costs = MadeUpCosts(num_experts=4)
    shapes = {
        (plan.attention.tp, plan.attention.count, plan.experts.tp, plan.experts.count)
        for plan in colocated(space, inventory, costs)
    }
    assert {(1, 16, 4, 4), (2, 4, 2, 4), (4, 1, 4, 1), (1, 4, 4, 1)} <= shapes
    assert all(tp * groups == width * count for tp, groups, width, count in shapes)


def plan(
    costs: MadeUpCosts,
    *devices: tuple[Device, int],
    target: Target | None = None,
    objective: Objective = Objective.COST,
    workload: Workload = DECODE,
    space: Space = SMALL_SPACE,
) -> Answer:
    planner = Planner.of(costs, Inventory(devices), workload, space)
    return planner.plan(target or Target(0.15), objective)


shapes = st.builds(
    MadeUpCosts,
    attention_bytes=st.floats(5e7, 5e8),
    expert_bytes=st.floats(1e8, 8e8),
    kv_bytes=st.floats(5e2, 2e4),
)


@given(costs=shapes, more=st.floats(1, 3), what=st.sampled_from(("bandwidth", "memory", "nic")))
@settings(max_examples=15, deadline=None)
def test_more_never_makes_the_best_plan_worse(costs: MadeUpCosts, more: float, what: str) -> None:
    device = {
        "bandwidth": made_up_device("big", 96, 4e12 * more, 148e12, 50e9, 1.85),
        "memory": made_up_device("big", 96 * more, 4e12, 148e12, 50e9, 1.85),
        "nic": made_up_device("big", 96, 4e12, 148e12, 50e9 * more, 1.85),
    }[what]
    before = plan(costs, (BIG, 6), (FAST, 8))
    after = plan(costs, (device, 6), (FAST, 8))
    for kind in ("apart", "together"):
        best, better = (value(getattr(of, kind), Objective.COST) for of in (before, after))
        assert better >= best * (1 - 1e-9)


@given(costs=shapes, tpot=st.floats(0.005, 0.5), objective=st.sampled_from(Objective))
@settings(max_examples=15, deadline=None)
def test_plans_keep_memory_latency_and_stock(
    costs: MadeUpCosts, tpot: float, objective: Objective
) -> None:
    answer = plan(costs, (BIG, 6), (FAST, 8), target=Target(tpot), objective=objective)
    stock = {"big": 6, "fast": 8}
    for found in (*answer.apart, *answer.together):
        deployment = found.deployment
        for ledger, role in zip(found.memory, deployment.roles, strict=True):
            assert ledger.total <= role.device.memory_bytes
        assert found.tpot_seconds <= tpot
        for name, count in stock.items():
            used = sum(r.devices for r in deployment.roles if r.device.name == name)
            assert used * deployment.replicas <= count
    values = [found.value(objective) for found in answer.apart]
    assert all(best >= next_ * (1 - 1e-8) for best, next_ in pairwise(values))


@given(costs=shapes, factor=st.integers(2, 5))
@settings(max_examples=8, deadline=None)
def test_units_of_cost_and_instances_scale_out(costs: MadeUpCosts, factor: int) -> None:
    one = plan(costs, (BIG, 2), (FAST, 8)).apart[0]
    dear = [replace(device, price=device.price * factor) for device in (BIG, FAST)]
    other = plan(costs, (dear[0], 2), (dear[1], 8)).apart[0]
    # The plans themselves may differ where several are equal: products of prices are rounded.
    assert other.per_price * factor == pytest.approx(one.per_price)
    many = Inventory(((BIG, 2 * factor), (FAST, 8 * factor)))
    assert many.instances(one.deployment) >= factor * one.deployment.replicas
    more = replace(one.deployment, replicas=factor * one.deployment.replicas)
    times = replace(one, deployment=more)
    assert times.tokens_per_second == pytest.approx(factor * one.tokens_per_second)
    assert times.per_price == one.per_price


def test_of_plans_that_bring_as_much_the_one_with_fewer_micro_batches_is_told() -> None:
    # Experts bind: a third micro-batch would bring more sequences, each of them slower.
    costs = MadeUpCosts(expert_bytes=401835406.2498016, kv_bytes=500.0)
    found = plan(costs, (BIG, 2), (FAST, 8), objective=Objective.COST).apart[0]
    predictor = Predictor(costs, DECODE)
    more = replace(found.deployment, micro_batches=found.deployment.micro_batches + 1)
    fewer = replace(found.deployment, micro_batches=found.deployment.micro_batches - 1)
    assert predictor.prediction(more, None).per_price == pytest.approx(found.per_price)
    assert predictor.prediction(fewer, None).per_price < 0.99 * found.per_price


seconds_apart = st.tuples(st.integers(1, 4), st.integers(1, 300), st.sampled_from((1, 2, 4, 8)))


@given(costs=shapes, shape=seconds_apart, prefill=st.sampled_from(Prefill))
@settings(max_examples=40, deadline=None)
def test_one_micro_batch_takes_the_sum_of_its_stages(
    costs: MadeUpCosts, shape: tuple[int, int, int], prefill: Prefill
) -> None:
    nodes, rows, experts = shape
    predictor = Predictor(costs, Workload(571, 159, prefill))
    one = Deployment(Nodes(BIG, 2, nodes), Nodes(FAST, 1, experts), 1, rows)
    found = predictor.prediction(one, None)
    stages = found.stages
    layer = (stages.attention, stages.experts, stages.dispatch, stages.combine)
    total = costs.moe_layers * sum(part.total for part in layer) + stages.outside.total
    assert found.tpot_seconds == pytest.approx(total)


@given(costs=shapes, shape=seconds_apart, m=st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_free_messages_leave_the_slower_role(
    costs: MadeUpCosts, shape: tuple[int, int, int], m: int
) -> None:
    nodes, rows, experts = shape
    free = replace(costs, free_network=True)
    deployment = Deployment(Nodes(BIG, 2, nodes), Nodes(FAST, 1, experts), m, rows)
    found = Predictor(free, DECODE).prediction(deployment, None)
    attention = found.stages.attention_seconds(costs.moe_layers)
    slower = max(attention, costs.moe_layers * found.stages.experts.total)
    assert found.tpot_seconds == pytest.approx(m * slower)
    paid = Predictor(costs, DECODE).prediction(deployment, None)
    assert paid.tpot_seconds >= found.tpot_seconds
    dear = replace(deployment, attention=Nodes(slow_nic(BIG), 2, nodes))
    assert Predictor(costs, DECODE).prediction(dear, None).tpot_seconds >= paid.tpot_seconds


def slow_nic(device: Device) -> Device:
    nic = replace(device.nic, bytes_per_second=device.nic.bytes_per_second / 10)
    return replace(device, nic=nic)


def test_a_latency_that_no_plan_meets_says_the_nearest() -> None:
    costs = MadeUpCosts()
    with pytest.raises(ConfigError, match=r"no plan keeps 0.01 ms between tokens") as failure:
        plan(costs, (BIG, 4), (FAST, 8), target=Target(1e-5))
    nearest = float(str(failure.value).split("the nearest has ")[1].split(" ms")[0]) / 1e3
    found = plan(costs, (BIG, 4), (FAST, 8), target=Target(nearest * 1.01))
    assert found.apart or found.together
    with pytest.raises(ConfigError, match="no plan keeps"):
        plan(costs, (BIG, 4), (FAST, 8), target=Target(nearest * 0.99))


def test_a_first_token_that_no_plan_meets_says_the_nearest() -> None:
    beside = Workload(5000, 100)
    with pytest.raises(ConfigError, match=r"no plan keeps 0.1 ms to the first token") as failure:
        plan(MadeUpCosts(), (BIG, 4), (FAST, 8), target=Target(0.5, 1e-4), workload=beside)
    nearest = float(str(failure.value).split("the nearest has ")[1].split(" ms")[0]) / 1e3
    target = Target(0.5, nearest * 1.01)
    found = plan(MadeUpCosts(), (BIG, 4), (FAST, 8), target=target, workload=beside)
    assert all((p.ttft_seconds or inf) <= nearest * 1.01 for p in found.apart + found.together)


def test_a_model_that_fits_nowhere_says_by_how_much() -> None:
    tiny = made_up_device("tiny", 3)
    costs = MadeUpCosts(attention_bytes=1e6, kv_bytes=1, expert_bytes=1e9)
    with pytest.raises(ConfigError, match=r"fits nowhere on 1 tiny: 61.0 GB are missing"):
        plan(costs, (tiny, 1))
    with pytest.raises(ConfigError, match=r"fits nowhere on 8 tiny: 40.0 GB are missing"):
        plan(costs, (tiny, 8))


@pytest.mark.parametrize(("tps", "stock"), [((2, 4), 1), ((16,), 64)])
def test_nodes_that_cannot_be_made_are_told(tps: tuple[int, ...], stock: int) -> None:
    with pytest.raises(ConfigError, match=r"no node of .* devices can be made of .* --tp 1"):
        plan(MadeUpCosts(), (BIG, stock), space=Space(tps=tps))


@pytest.mark.parametrize("devices", [(), ((BIG, 0),), ((BIG, 1), (BIG, 2))])
def test_an_inventory_that_cannot_be_is_refused(devices: tuple[tuple[Device, int], ...]) -> None:
    with pytest.raises(ConfigError):
        Inventory(devices)


@pytest.mark.parametrize("fields", [(0, 1), (1, 0)])
def test_a_workload_needs_tokens(fields: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Workload(*fields)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_target_is_above_zero(seconds: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Target(seconds)
    with pytest.raises(ConfigError, match="above 0"):
        Target(1.0, seconds)


def test_the_verdict_is_honest_both_ways() -> None:
    # Attention reads much, experts compute much: each device does what it is better at.
    both = plan(MadeUpCosts(), (BIG, 8), (FAST, 16), objective=Objective.GPU)
    assert both.verdict.ratio == pytest.approx(both.apart[0].per_gpu / both.together[0].per_gpu)
    assert both.verdict.sentence.startswith("apart wins by")
    # One kind of device, and a network that nothing hides.
    slow = made_up_device("slow", 400, 2e12, 300e12, 1e9)
    narrow = plan(MadeUpCosts(), (slow, 8))
    assert narrow.verdict.sentence.startswith("apart doesn't pay here, colocated gives")
    assert "network" in narrow.verdict.sentence
    alone = plan(MadeUpCosts(), (slow, 1))
    assert alone.verdict.sentence.startswith("only colocated is possible here")


def test_with_latency_the_front_is_by_device() -> None:
    planner = Planner.of(MadeUpCosts(), Inventory(((BIG, 2), (FAST, 4))), DECODE, SMALL_SPACE)
    front = planner.front(Objective.LATENCY, 4)
    assert len(front.apart) > 1
    assert front == planner.front(Objective.GPU, 4)


def test_the_front_rises_in_one_and_falls_in_the_other() -> None:
    inventory = Inventory(((BIG, 4), (FAST, 8)))
    front = Planner.of(MadeUpCosts(), inventory, DECODE, SMALL_SPACE).front(Objective.GPU, 6)
    for plans in (front.apart, front.together):
        speeds = [found.per_user for found in plans]
        values = [found.per_gpu for found in plans]
        assert len(plans) >= 3
        assert speeds == sorted(speeds)
        assert values == sorted(values, reverse=True)


def test_what_keeps_a_batch_from_growing_is_named() -> None:
    roomy = made_up_device("roomy", 4000)
    hurried = plan(MadeUpCosts(), (roomy, 12), target=Target(0.02), space=Space(tps=(1, 2)))
    assert Limit.TPOT in {found.limit for found in hurried.apart}
    narrow = made_up_device("narrow", 12)
    full = plan(MadeUpCosts(), (narrow, 16), target=Target(5.0), space=Space(tps=(1, 2)))
    assert {found.limit for found in full.apart} == {Limit.MEMORY}


def test_few_of_all_plans_are_computed() -> None:
    """On four kinds of 256 devices each; what takes long grows with these numbers."""
    made = list[int]()

    class Counted(MadeUpCosts):
        def road(self, attention: Nodes, experts: Nodes) -> Any:
            made.append(attention.count)
            return super().road(attention, experts)

    kinds = [
        made_up_device(f"kind-{i}", 60 + 10 * i, (1 + i) * 1e12, (5 - i) * 1e14, 50e9, 1 + i / 2)
        for i in range(4)
    ]
    inventory = Inventory(tuple((kind, 256) for kind in kinds))
    costs = Counted(num_experts=64, moe_layers=30, expert_bytes=5e7)
    planner = Planner.of(costs, inventory, DECODE)
    assert len(planner.plan(Target(0.1), top=5).apart) == 5
    branches = sum(
        family.most_nodes(inventory) * planner.space.most_micro_batches
        for family in families(planner.space, inventory, costs)
    )
    assert branches > 500_000
    assert len(made) < branches / 20


@cache
def dbrx(folder: Path, skew: float) -> ModelStages:
    popularity = Popularity.zipf(16, 4, skew)
    return ModelStages(
        ModelCosts.of(public_spec("dbrx", folder), Precision("bfloat16"), popularity)
    )


@pytest.mark.parametrize("skew", [0.0, 0.8])
def test_real_costs_are_what_the_bounds_take_for_granted(tmp_path: Path, skew: float) -> None:
    """Without pruning the best of DBRX on two kinds of GPUs is the same."""
    devices = load_devices()
    inventory = Inventory(((devices["H20"], 4), (devices["L40S"], 16)))
    space = Space((1, 2), most_micro_batches=2, most_rows=8, spares=(0, 1))
    planner = Planner.of(dbrx(tmp_path, skew), inventory, DECODE, space)
    apart, together = by_trying(planner, Target(0.15), Objective.COST)
    answer = planner.plan(Target(0.15), Objective.COST)
    assert value(answer.apart, Objective.COST) == pytest.approx(apart, rel=1e-9)
    assert value(answer.together, Objective.COST) == pytest.approx(together, rel=1e-9)
