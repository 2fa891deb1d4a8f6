"""What one deployment is expected to give: stages, seconds between tokens, memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt

from megainfer.memory import Ledger
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.costs.step import Step
from megainfer.planner.costs.straggling import expected_maximum
from megainfer.planner.search.costs import ColocatedCosts, Costs
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.prediction import Limit, Prediction
from megainfer.planner.search.stages import Pace, Stages
from megainfer.planner.search.workload import Prefill, Target, Workload

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Predictor:
    """Predicts deployments of one model for one workload, and remembers their parts: a search asks
    for the same ones over and over."""

    costs: Costs
    workload: Workload
    _times: dict[Key, Time] = field(default_factory=dict, repr=False)
    _steps: dict[float, Step] = field(default_factory=dict, repr=False)
    _deviation: float = field(init=False, repr=False)  # of a sequence's context
    layers: int = field(init=False)  # with experts

    def __post_init__(self) -> None:
        object.__setattr__(self, "_deviation", self.workload.context_deviation)
        object.__setattr__(self, "layers", self.costs.moe_layers)

    def step(self, rows: float) -> Step:
        """`Workload.step`."""
        if rows not in self._steps:
            self._steps[rows] = self.workload.step(rows)
        return self._steps[rows]

    def attention_seconds(self, nodes: Nodes, rows: float, experts: Nodes | None = None) -> float:
        """That each computes in one micro-batch's step; experts: that its rows are packed for, or
        none. At least this with more nodes of either role."""
        step = self.step(rows)
        layer = self._attention(nodes, step, experts).total
        return self.layers * layer + self._outside(nodes, step).total

    def expert_seconds(self, nodes: Nodes, rows: float) -> float:
        """That they compute in one micro-batch's step, when so many tokens came together."""
        return self.layers * self._experts(nodes, rows).total

    def _attention(self, nodes: Nodes, step: Step, experts: Nodes | None) -> Time:
        device, tp = nodes.device, nodes.tp
        sent_to = (experts.count, experts.spares) if experts else (0, 0)
        time = self._time(
            ("attention", device.name, tp, *sent_to, step.decode_rows, step.prefill_rows),
            lambda: self.costs.attention(device, tp).layer(step, *sent_to),
        )
        return self._slowest(time, nodes, step)

    def _slowest(self, time: Time, nodes: Nodes, step: Step) -> Time:
        """Their sequences' contexts differ, and all wait for whoever has most to read."""
        if nodes.count == 1:
            return time
        deviation = self._deviation / sqrt(max(step.decode_rows, 1.0))
        more = time.cache * (expected_maximum(nodes.count, deviation) - 1)
        return time + Time(cache=more)

    def _outside(self, nodes: Nodes, step: Step) -> Time:
        device, tp = nodes.device, nodes.tp
        return self._time(
            ("outside", device.name, tp, step.decode_rows, step.prefill_rows, step.prompts),
            lambda: self.costs.attention(device, tp).outside(step),
        )

    def _experts(self, nodes: Nodes, rows: float) -> Time:
        device, tp, count, spares = nodes.device, nodes.tp, nodes.count, nodes.spares
        return self._time(
            ("experts", device.name, tp, count, spares, rows),
            lambda: self.costs.experts(device, tp, count, spares).layer(rows),
        )

    def stages(self, deployment: Deployment, step: Step, others: Step) -> Stages:
        """Where one attention node computes `step` and the rest of them `others`."""
        if deployment.together:
            return self._together(deployment, step)
        attention, experts = deployment.attention, deployment.experts
        road = self.costs.road(attention, experts)
        awake = Stages(
            self._attention(attention, step, experts),
            self._experts(experts, step.rows + (attention.count - 1) * others.rows),
            road.dispatch(step.rows),
            road.combine(step.rows),
            self._outside(attention, step),
        )
        if deployment.micro_batches > 1:  # who waits then is woken while the busier role works
            return awake
        return awake.with_waking(road, step.rows, self.layers, 1)

    def _together(self, deployment: Deployment, step: Step) -> Stages:
        nodes, costs = deployment.attention, self._colocated(deployment)
        way = costs.exchange(step) * 0.5
        slowest = self._slowest(costs.attention(step), nodes, step)
        return Stages(slowest, costs.experts(step), way, way, costs.outside(step))

    def pace(self, deployment: Deployment) -> Pace:
        """Of a steady state."""
        step = self.step(deployment.rows)
        stages = self.stages(deployment, step, step)
        return self._pace(deployment, stages, stages)

    def ttft_seconds(self, deployment: Deployment) -> float | None:
        """Half a step's wait, then a step for each chunk, in which the other micro-batches and
        attention nodes do what they do on average. None where prompts are computed elsewhere."""
        if self.workload.prefill is Prefill.ELSEWHERE:
            return None
        usual = self.step(deployment.rows)
        full = self.workload.prompt_step(deployment.rows)
        others = self.stages(deployment, usual, usual)
        own = self.stages(deployment, full, usual)
        wait = self._pace(deployment, others, others).seconds / 2
        return wait + self.workload.chunks * self._pace(deployment, own, others).seconds

    def _pace(self, deployment: Deployment, own: Stages, others: Stages) -> Pace:
        layers = self.layers
        if deployment.together:
            return Pace.together(own, layers)
        return Pace.apart(own, others, layers, deployment.micro_batches)

    def memory(self, deployment: Deployment) -> tuple[Ledger, ...]:
        """Of one device of each of `deployment.roles`."""
        attention, experts = deployment.attention, deployment.experts
        m = deployment.micro_batches
        sequences = deployment.rows * m
        tokens = self.workload.cache_tokens(sequences)
        rows = self.workload.most_rows(deployment.rows)
        if deployment.together:
            return (self._colocated(deployment).memory(tokens, sequences, rows),)
        return (
            self.costs.attention(attention.device, attention.tp).memory(
                tokens, sequences, rows, m, experts.count
            ),
            self.costs.experts(experts.device, experts.tp, experts.count, experts.spares).memory(
                rows, m, attention.count
            ),
        )

    def _colocated(self, deployment: Deployment) -> ColocatedCosts:
        nodes, experts = deployment.attention, deployment.experts
        return self.costs.colocated(
            nodes.device, nodes.tp, nodes.count, experts.count, experts.spares
        )

    def fits(self, deployment: Deployment) -> bool:
        """Whether each role's devices hold what they have to."""
        needs = self.memory(deployment)
        return all(
            ledger.total <= role.device.memory_bytes
            for ledger, role in zip(needs, deployment.roles, strict=True)
        )

    def limit(self, deployment: Deployment, target: Target) -> Limit | None:
        """Why this deployment is impossible: memory, or a latency that it misses; None if not."""
        if not self.fits(deployment):
            return Limit.MEMORY
        if self.pace(deployment).seconds > target.tpot_seconds:
            return Limit.TPOT
        return Limit.TTFT if self._misses_first_token(deployment, target) else None

    def _misses_first_token(self, deployment: Deployment, target: Target) -> bool:
        if target.ttft_seconds is None:
            return False
        first = self.ttft_seconds(deployment)
        return first is not None and first > target.ttft_seconds

    def prediction(self, deployment: Deployment, limit: Limit | None) -> Prediction:
        """limit: what keeps it from having more sequences."""
        step = self.step(deployment.rows)
        return Prediction(
            deployment,
            self.layers,
            self.stages(deployment, step, step),
            self.pace(deployment),
            self.ttft_seconds(deployment),
            self.memory(deployment),
            limit,
        )

    def _time(self, key: Key, compute: Callable[[], Time]) -> Time:
        if key not in self._times:
            self._times[key] = compute()
        return self._times[key]
