"""One deployment in the simulator: with all its places taken, and with requests that come.

What is simulated is one instance, or a part of it that behaves alike, so that trying one takes about
a second. Of many attention nodes `NODES` are simulated and the experts get the rows of all; of many
expert nodes too, each with its own share of rows. Of the layers as few as the events allow, with
everything that isn't a layer's (sampling, arrivals, lengths of time) shortened by as much: steps
follow each other without a bubble, so that a step of L layers is L / L' steps of L'. Jitter is drawn
by the stage, so fewer layers show wider gaps between tokens than there would be.
"""

import math
from dataclasses import dataclass, replace

from megainfer.planner.rehearsal.stages import RowTimes, StepTimes
from megainfer.planner.rehearsal.traffic import Traffic
from megainfer.planner.search.costs import Costs
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.workload import Prefill, Workload
from megainfer.simulator import Latencies, Load, Outcome, Request, Scenario, Span, Spell, simulate
from megainfer.simulator.request import Percentiles

NODES = 8
"""Of either role, at most."""
FULL_STEPS, FULL_WARM_UP = 30, 6
LEAST_STEPS, MOST_STEPS = 60, 500
LEAST_LAYERS = 2
EVENTS = 60_000
"""Of one simulation, about; some 10 us each."""
SEQUENCES = 1000
"""That run at a time, at most, unless one attention node has more."""
TOKENS = 150_000
"""Of all sequences; some 2 us each."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What the simulator made of a deployment; of one instance.

    tokens_per_second, tpot_seconds and the idle shares: with all places taken all the time.
    offered: tokens a second that were asked for under `latencies`, share of that throughput.
    simulated: attention nodes, expert nodes and layers. spans: of one step, in real seconds.
    """

    tokens_per_second: float
    tpot_seconds: float
    attention_idle: float
    expert_idle: float
    offered: float
    latencies: Latencies
    simulated: tuple[int, int, int]
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stage:
    """What both simulations share. shortening: simulated seconds by real ones. weight: attention
    nodes that each simulated one stands for."""

    scenario: Scenario
    shortening: float
    weight: float
    places: int
    cache_tokens: int

    def load(self, requests: list[Request], workload: Workload) -> Load:
        elsewhere = workload.prefill is Prefill.ELSEWHERE
        if elsewhere:
            # The pool that computed a prompt has made its first token.
            requests = [
                replace(r, output_tokens=max(r.made + 1, r.output_tokens - 1)) for r in requests
            ]
        longest = max((r.input_tokens + r.output_tokens for r in requests), default=1)
        shortened = tuple(replace(r, at=r.at * self.shortening) for r in requests)
        step_tokens = workload.chunk + math.ceil(self.places / self.scenario.micro_batches)
        cache = max(self.cache_tokens, longest)
        return Load(shortened, self.places, step_tokens, cache, computes_prompts=not elsewhere)


def rehearse(
    costs: Costs, prediction: Prediction, workload: Workload, traffic: Traffic, records: bool = False
) -> Rehearsal:
    """Try it. records: whether spans are kept. The deployment's roles must be apart."""
    full_stage = _stage(costs, prediction, workload, traffic, FULL_STEPS + FULL_WARM_UP)
    full = _full(full_stage, prediction, workload, traffic, records)
    made = full.tokens_per_second * full_stage.shortening * full_stage.weight
    tpot = prediction.deployment.batch / made if made else math.inf
    latencies = _loaded(costs, prediction, workload, traffic, made)
    spans = tuple(_lengthened(span, full_stage.shortening) for span in full.spans)
    own = full_stage.scenario
    return Rehearsal(
        made,
        tpot,
        full.attention_idle,
        full.expert_idle,
        traffic.share * made,
        latencies,
        (own.attention_nodes, own.expert_nodes, own.layers),
        spans,
    )


def _stage(
    costs: Costs, prediction: Prediction, workload: Workload, traffic: Traffic, steps: int
) -> _Stage:
    deployment = prediction.deployment
    attention, experts = deployment.attention, deployment.experts
    places = deployment.rows * deployment.micro_batches
    nodes = min(attention.count, NODES, max(1, SEQUENCES // places))
    expert_nodes = min(experts.count, NODES)
    weight = attention.count / nodes
    per_layer = deployment.micro_batches * nodes * (2 * expert_nodes + 2)
    layers = min(prediction.layers, max(LEAST_LAYERS, EVENTS // (steps * per_layer)))
    shortening = layers / prediction.layers
    own = costs.attention(attention.device, attention.tp)
    road = costs.road(attention, experts)
    slow = (Spell(nodes - 1, traffic.straggler),) if traffic.straggler > 1 else ()
    scenario = Scenario(
        attention_nodes=nodes,
        expert_nodes=expert_nodes,
        micro_batches=deployment.micro_batches,
        layers=layers,
        choosing=1.0,  # The experts' times are by the rows of all nodes.
        attention=StepTimes(own.layer, workload.chunk),
        expert=RowTimes(costs.experts(experts.device, experts.tp, experts.count).layer, weight),
        sampling=StepTimes(own.outside, workload.chunk, shortening),
        dispatch=RowTimes(road.dispatch),
        combine=RowTimes(road.combine),
        queued_transfers=True,
        jitter=traffic.jitter,
        spells=slow,
        seed=traffic.seed,
    )
    return _Stage(scenario, shortening, weight, places, _cache_tokens(prediction, workload, places))


def _cache_tokens(prediction: Prediction, workload: Workload, places: int) -> int:
    """What an attention node's cache holds when it takes the memory that the plan leaves free."""
    ledger, device = prediction.memory[0], prediction.deployment.attention.device
    cache, free = ledger.of("KV cache"), device.memory_bytes - ledger.total
    planned = places * workload.context
    return math.floor(planned * (1 + max(0, free) / cache)) if cache else 2**62


def _full(
    stage: _Stage, prediction: Prediction, workload: Workload, traffic: Traffic, records: bool
) -> Outcome:
    step = prediction.tpot_seconds * stage.shortening
    nodes = stage.scenario.attention_nodes
    places = nodes * stage.places
    steps = FULL_STEPS + FULL_WARM_UP
    waiting = math.ceil(2 * places * (1 + steps / traffic.mean_output(workload)))
    requests = traffic.backlog(workload, places, waiting)
    return simulate(
        replace(
            stage.scenario,
            load=stage.load(requests, workload),
            duration=steps * step,
            warm_up=FULL_WARM_UP * step,
            recorded=step if records else 0.0,
        )
    )


def _loaded(
    costs: Costs, prediction: Prediction, workload: Workload, traffic: Traffic, made: float
) -> Latencies:
    """Under a share of the throughput `made`, in real seconds."""
    if not made:
        return Latencies()
    output = traffic.mean_output(workload)
    batch = prediction.deployment.batch
    steps = min(MOST_STEPS, math.ceil(1.5 * output), max(LEAST_STEPS, TOKENS // batch))
    steps = max(LEAST_STEPS, steps)
    stage = _stage(costs, prediction, workload, traffic, steps)
    seconds = steps * prediction.tpot_seconds
    rate = traffic.share * made / output / stage.weight
    under_way = round(traffic.share * stage.scenario.attention_nodes * stage.places)
    requests = traffic.requests(workload, rate, seconds, under_way)
    outcome = simulate(
        replace(
            stage.scenario,
            load=stage.load(requests, workload),
            duration=seconds * stage.shortening,
            warm_up=0.2 * seconds * stage.shortening,
        )
    )
    found = outcome.latencies
    return replace(
        found,
        first_token=_scaled(found.first_token, 1 / stage.shortening),
        between_tokens=_scaled(found.between_tokens, 1 / stage.shortening),
        per_token=_scaled(found.per_token, 1 / stage.shortening),
    )


def _scaled(times: Percentiles, factor: float) -> Percentiles:
    seconds = (factor * value for value in (times.mean, times.p50, times.p90, times.p99))
    return Percentiles(times.count, *seconds)


def _lengthened(span: Span, shortening: float) -> Span:
    return replace(span, start=span.start / shortening, end=span.end / shortening)
