"""One deployment in the simulator: with all its places taken, and with requests that come.

What is simulated is one instance, or a part of it that behaves alike, so that trying one takes a
few seconds. Of many attention nodes few are simulated and the experts get the rows of all; of many
expert nodes too, each with its own share of rows. So the slowest of many is met less often than it
would be: the fewer there are, the less jitter costs. Of a colocated deployment a group of devices
is an attention node, and all of them keep step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from megainfer.planner.rehearsal.stages import RowTimes, StepTimes, rows_alone
from megainfer.planner.rehearsal.traffic import Traffic
from megainfer.planner.search.costs import Costs
from megainfer.planner.search.deployment import Deployment
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.workload import Prefill, Workload
from megainfer.simulator import (
    FREE,
    Latencies,
    Load,
    Outcome,
    Request,
    Scenario,
    Span,
    Spell,
    simulate,
    simulate_together,
)

MOST_NODES, LEAST_NODES = 8, 2
"""Of either role, where there are so many."""
FULL_STEPS, FULL_WARM_UP = 24, 6
LEAST_STEPS, MOST_STEPS = 60, 500
EVENTS = 100_000
"""Of one simulation, about; some 10 us each."""
SEQUENCES = 1000
"""That run at a time, at most, unless one attention node has more."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What the simulator made of a deployment; of one instance.

    tokens_per_second, tpot_seconds and the idle shares: with all places taken all the time.
    offered: tokens a second that were asked for under `latencies`, a share of that throughput.
    nodes: attention nodes and expert nodes that were simulated. spans: of about one step.
    """

    tokens_per_second: float
    tpot_seconds: float
    attention_idle: float
    expert_idle: float
    offered: float
    latencies: Latencies
    nodes: tuple[int, int]
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stage:
    """What both simulations share. run: the simulator. weight: attention nodes that each simulated
    one stands for. places: sequences that run on one of them."""

    scenario: Scenario
    run: Callable[[Scenario], Outcome]
    weight: float
    places: int
    cache_tokens: int

    @property
    def events_per_step(self) -> int:
        own = self.scenario
        return own.layers * own.micro_batches * _events(own.attention_nodes, own.expert_nodes)

    def load(self, requests: list[Request], workload: Workload) -> Load:
        elsewhere = workload.prefill is Prefill.ELSEWHERE
        if elsewhere:
            # The pool that computed a prompt has made its first token.
            requests = [
                replace(r, output_tokens=max(r.made + 1, r.output_tokens - 1)) for r in requests
            ]
        longest = max((r.input_tokens + r.output_tokens for r in requests), default=1)
        step_tokens = workload.most_rows(math.ceil(self.places / self.scenario.micro_batches))
        cache = max(self.cache_tokens, longest)
        return Load(tuple(requests), self.places, step_tokens, cache, not elsewhere)


def rehearse(
    costs: Costs,
    prediction: Prediction,
    workload: Workload,
    traffic: Traffic,
    records: bool = False,
) -> Rehearsal:
    """Try it. records: whether spans are kept, of roles that are apart."""
    made_of = _together if prediction.deployment.together else _apart
    stage = made_of(costs, prediction, workload, traffic)
    full = _full(stage, prediction, workload, traffic, records)
    made = full.tokens_per_second * stage.weight
    return Rehearsal(
        made,
        prediction.deployment.batch / made if made else math.inf,
        full.attention_idle,
        full.expert_idle,
        traffic.share * made,
        _loaded(stage, prediction, workload, traffic, made),
        (stage.scenario.attention_nodes, stage.scenario.expert_nodes),
        full.spans,
    )


def _apart(costs: Costs, prediction: Prediction, workload: Workload, traffic: Traffic) -> _Stage:
    deployment = prediction.deployment
    attention, experts = deployment.attention, deployment.experts
    nodes, expert_nodes = _simulated_nodes(deployment, prediction.layers)
    weight = attention.count / nodes
    own, sent_to = costs.attention(attention.device, attention.tp), (experts.count, experts.spares)
    road = costs.road(attention, experts)
    waits = prediction.stages.waits(prediction.layers, deployment.micro_batches)
    attention_sleeps, experts_sleep = (wait > road.awake_seconds for wait in waits)
    scenario = Scenario(
        attention_nodes=nodes,
        expert_nodes=expert_nodes,
        micro_batches=deployment.micro_batches,
        layers=prediction.layers,
        choosing=1.0,  # The experts' times are by the rows of all nodes.
        attention=StepTimes(lambda step: own.layer(step, *sent_to), workload.chunk),
        expert=RowTimes(costs.experts(experts.device, experts.tp, *sent_to).layer, weight),
        sampling=StepTimes(own.outside, workload.chunk),
        dispatch=RowTimes(partial(road.dispatch, asleep=experts_sleep)),
        combine=RowTimes(partial(road.combine, asleep=attention_sleeps)),
        queued_transfers=True,
        jitter=traffic.jitter,
        spells=(Spell(nodes - 1, traffic.straggler),) if traffic.straggler > 1 else (),
        seed=traffic.seed,
    )
    places = deployment.rows * deployment.micro_batches
    cache = _cache_tokens(prediction, workload, places)
    return _Stage(scenario, simulate, weight, places, cache)


def _together(costs: Costs, prediction: Prediction, workload: Workload, traffic: Traffic) -> _Stage:
    deployment = prediction.deployment
    nodes, experts = deployment.attention, deployment.experts
    groups = min(nodes.count, MOST_NODES, max(LEAST_NODES, SEQUENCES // deployment.rows))
    own = costs.colocated(nodes.device, nodes.tp, nodes.count, experts.count, experts.spares)
    scenario = Scenario(
        attention_nodes=groups,
        expert_nodes=1,
        micro_batches=1,
        layers=prediction.layers,
        attention=StepTimes(own.attention, workload.chunk),
        # The rows of those that are simulated, by as many as they are, are a group's mean ones.
        expert=RowTimes(lambda rows: own.experts(rows_alone(rows)), 1 / groups),
        sampling=StepTimes(own.outside, workload.chunk),
        dispatch=RowTimes(lambda rows: own.exchange(rows_alone(rows))),
        combine=FREE,
        jitter=traffic.jitter,
        spells=(Spell(groups - 1, traffic.straggler),) if traffic.straggler > 1 else (),
        seed=traffic.seed,
    )
    cache = _cache_tokens(prediction, workload, deployment.rows)
    return _Stage(scenario, simulate_together, nodes.count / groups, deployment.rows, cache)


def _simulated_nodes(deployment: Deployment, layers: int) -> tuple[int, int]:
    """As many of each role as the events and sequences allow."""
    places = deployment.rows * deployment.micro_batches
    nodes = min(deployment.attention.count, MOST_NODES, max(LEAST_NODES, SEQUENCES // places))
    expert_nodes = min(deployment.experts.count, MOST_NODES)
    most = EVENTS / LEAST_STEPS / layers / deployment.micro_batches
    while _events(nodes, expert_nodes) > most and max(nodes, expert_nodes) > LEAST_NODES:
        if expert_nodes >= nodes:
            expert_nodes -= 1
        else:
            nodes -= 1
    return nodes, expert_nodes


def _events(nodes: int, expert_nodes: int) -> int:
    """Of one micro-batch's layer: stages that end, and messages that arrive."""
    return nodes + expert_nodes + 2 * nodes * expert_nodes


def _cache_tokens(prediction: Prediction, workload: Workload, places: int) -> int:
    """What an attention node's cache holds when it takes the memory that the plan leaves free."""
    ledger, device = prediction.memory[0], prediction.deployment.attention.device
    cache, free = ledger.of("KV cache"), device.memory_bytes - ledger.total
    planned = workload.cache_tokens(places)
    return math.floor(planned * (1 + max(0, free) / cache)) if cache else 2**62


def _mean_made(workload: Workload) -> float:
    """Tokens of an answer that the instance makes; a pool that computes prompts makes the first."""
    by_others = workload.prefill is Prefill.ELSEWHERE
    return max(1.0, float(workload.output_tokens - by_others))


def _full(
    stage: _Stage, prediction: Prediction, workload: Workload, traffic: Traffic, records: bool
) -> Outcome:
    step = prediction.tpot_seconds
    places = stage.scenario.attention_nodes * stage.places
    steps = FULL_STEPS + FULL_WARM_UP
    waiting = math.ceil(2 * places * (1 + steps / _mean_made(workload)))
    requests = traffic.backlog(workload, places, waiting)
    return stage.run(
        replace(
            stage.scenario,
            load=stage.load(requests, workload),
            duration=steps * step,
            warm_up=FULL_WARM_UP * step,
            recorded=step if records else 0.0,
        )
    )


def _loaded(
    stage: _Stage, prediction: Prediction, workload: Workload, traffic: Traffic, made: float
) -> Latencies:
    """Under a share of the throughput `made`."""
    if not made:
        return Latencies()
    output = _mean_made(workload)
    steps = min(math.ceil(1.5 * output), MOST_STEPS, EVENTS // stage.events_per_step)
    seconds = max(LEAST_STEPS, steps) * prediction.tpot_seconds
    rate = traffic.share * made / output / stage.weight
    under_way = round(traffic.share * stage.scenario.attention_nodes * stage.places)
    requests = traffic.requests(workload, rate, seconds, under_way)
    outcome = stage.run(
        replace(
            stage.scenario,
            load=stage.load(requests, workload),
            duration=seconds,
            warm_up=0.2 * seconds,
        )
    )
    return outcome.latencies
