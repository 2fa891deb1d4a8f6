"""The search for a plan as MegaScale-Infer publishes it (arXiv 2504.02263, Algorithm 1).

One expert a node, m from 3 to N_m, bf16; for each pair of kinds of devices and of tp_a and tp_e:

    T_a = k1 b_a + k2    T_e = k3 b_e + k4    b_e = b_a n_a K / E    n_a = k1 E / (k3 K)
    T_total = (T_a + T_e + 2 T_c) + T_f (m L - 1)    T_f = max(T_a, T_e)
    m T_f L <= SLO    m T_f >= 2 (T_f + T_c)
    4 m b_a s h L / g + 2 P_a < tp_a C_a    2 P_e < tp_e C_e

and the largest b_a that keeps the limits. Most tokens a second and unit of price win:
(B / T_total) / (tp_a n_a Cost_a + tp_e E Cost_e). The paper profiles the k's. Here they are the
line through two batches of the roofline, `LINE` rows.

`search/` looks at more: any number of expert nodes, m from 1, stage times that are no lines.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from megainfer.errors import ConfigError
from megainfer.models.sources import attention_weight_bytes
from megainfer.planner.costs.step import Contexts, Step
from megainfer.planner.formulas import min_micro_batches, total_time
from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.model_stages import ModelStages
from megainfer.planner.search.workload import Objective, Workload

TPS = (1, 2, 4, 8)
LEAST_M, MOST_M = 3, 4
LINE = (64.0, 512.0)
"""Rows of an attention node, and of one expert, between which a stage is taken for a line."""
BF16_BYTES = 2
MOST_ROWS = 2**20


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a stage: `per_row` b + `fixed`."""

    per_row: float
    fixed: float

    @classmethod
    def through(cls, seconds: Callable[[float], float]) -> "Line":
        """What the stage takes at both ends of LINE.

        >>> Line.through(lambda rows: 2.0 * rows + 3.0)
        Line(per_row=2.0, fixed=3.0)
        """
        low, high = LINE
        slope = (seconds(high) - seconds(low)) / (high - low)
        return cls(slope, seconds(low) - slope * low)

    def at(self, rows: float) -> float:
        return max(0.0, self.per_row * rows + self.fixed)


@dataclass(frozen=True, slots=True)
class PaperPlan:
    """A plan of the algorithm's. Stage times in seconds, of one micro-batch and layer."""

    deployment: Deployment
    t_a: float
    t_e: float
    t_c: float
    total_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """B / T_total, of one instance."""
        return self.deployment.batch / self.total_seconds

    @property
    def per_price(self) -> float:
        """Tokens a second and unit of price: what the algorithm maximises."""
        return self.tokens_per_second / self.deployment.spent(Objective.COST)

    @property
    def per_gpu(self) -> float:
        return self.tokens_per_second / self.deployment.devices


@dataclass(frozen=True, slots=True)
class Algorithm1:
    """For one model and workload, and a limit on an iteration's seconds (the SLO)."""

    stages: ModelStages
    workload: Workload
    slo_seconds: float
    _sizes: "_Sizes" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sizes", _Sizes.of(self.stages))

    def plans(self, devices: tuple[Device, ...]) -> tuple[PaperPlan, ...]:
        """The best plan of each pair of kinds of devices, best first. Raises ConfigError where no
        plan keeps the limits."""
        best = [
            max(found, key=lambda plan: plan.per_price)
            for attention in devices
            for expert in devices
            if (found := list(self._pair(attention, expert)))
        ]
        if not best:
            raise ConfigError(
                f"Algorithm 1 finds no plan with {self.slo_seconds * 1e3:g} ms between tokens: it "
                f"knows nodes of up to {TPS[-1]} devices, one expert a node, and {LEAST_M} to "
                f"{MOST_M} micro-batches; allow more time, or plan without --paper"
            )
        return tuple(sorted(best, key=lambda plan: plan.per_price, reverse=True))

    def _pair(self, attention: Device, expert: Device) -> Iterator[PaperPlan]:
        for tp_e in TPS:
            for tp_a in TPS:
                if not self._fits(attention, tp_a, expert, tp_e):
                    continue
                for m in range(LEAST_M, MOST_M + 1):
                    plan = self._largest(attention, tp_a, expert, tp_e, m)
                    if plan is not None:
                        yield plan

    def _fits(self, attention: Device, tp_a: int, expert: Device, tp_e: int) -> bool:
        """Whether the weights do, and whether nodes may have so many devices."""
        if tp_a > attention.link.devices or tp_e > expert.link.devices:
            return False
        try:
            self.stages.attention(attention, tp_a)
            self.stages.experts(expert, tp_e, self.stages.num_experts)
        except ConfigError:  # heads or columns that can't be shared by so many
            return False
        return (
            self._sizes.attention < tp_a * attention.memory_bytes
            and self._sizes.expert < tp_e * expert.memory_bytes
        )

    def _largest(
        self, attention: Device, tp_a: int, expert: Device, tp_e: int, m: int
    ) -> PaperPlan | None:
        """By binary search of b_a; None where one row already breaks a limit."""
        lines = self.line_a(attention, tp_a), self.line_e(expert, tp_e)
        nodes = balanced(*lines, self.stages.num_experts, self.stages.model.spec.top_k)

        def plan(rows: int) -> PaperPlan | None:
            deployment = Deployment(
                Nodes(attention, tp_a, nodes),
                Nodes(expert, tp_e, self.stages.num_experts),
                m,
                rows,
            )
            return self._kept(deployment, *lines)

        low, high = 0, MOST_ROWS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if plan(middle) else (low, middle)
        return plan(low) if low else None

    def _kept(self, deployment: Deployment, line_a: Line, line_e: Line) -> PaperPlan | None:
        attention, m, layers = (
            deployment.attention,
            deployment.micro_batches,
            self.stages.moe_layers,
        )
        cache = deployment.rows * m * self.workload.context * self._sizes.token
        if cache + self._sizes.attention >= attention.tp * attention.device.memory_bytes:
            return None
        share = self.stages.model.spec.top_k / self.stages.num_experts
        t_a = line_a.at(deployment.rows)
        t_e = line_e.at(deployment.rows * attention.count * share)
        if m * layers * max(t_a, t_e) > self.slo_seconds:
            return None
        road = self.stages.road(attention, deployment.experts)
        t_c = max(way(deployment.rows).total for way in (road.dispatch, road.combine))
        if m < min_micro_batches(max(t_a, t_e), t_c):
            return None
        return PaperPlan(deployment, t_a, t_e, t_c, total_time(t_a, t_e, t_c, m, layers))

    def line_a(self, device: Device, tp: int) -> Line:
        """k1 and k2, at the workload's mean context."""
        stage = self.stages.attention(device, tp)
        contexts = Contexts.at(self.workload.context)
        experts = self.stages.num_experts
        return Line.through(lambda rows: stage.layer(Step(rows, contexts), experts).total)

    def line_e(self, device: Device, tp: int) -> Line:
        """k3 and k4, by rows of one expert."""
        experts, top_k = self.stages.num_experts, self.stages.model.spec.top_k
        stage = self.stages.experts(device, tp, experts)
        return Line.through(lambda rows: stage.layer(rows * experts / top_k).total)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """In bytes of bf16: 2 P_a, attention and all else that isn't an expert; 2 P_e, one expert of
    each layer; 4 h L / g, the cache of one token."""

    attention: float
    expert: float
    token: float

    @classmethod
    def of(cls, stages: ModelStages) -> "_Sizes":
        spec = stages.model.spec
        return cls(
            attention_weight_bytes(spec, BF16_BYTES),
            stages.moe_layers * spec.expert_weight_bytes(BF16_BYTES),
            spec.kv_bytes_per_token(BF16_BYTES),
        )


def balanced(line_a: Line, line_e: Line, experts: int, top_k: int) -> int:
    """n_a = k1 E / (k3 K), at least 1: with it T_a and T_e grow alike with the batch.

    >>> balanced(Line(4e-6, 0.0), Line(8e-6, 0.0), 16, 4)
    2
    """
    if line_e.per_row <= 0:
        return 1
    return max(1, round(line_a.per_row * experts / (line_e.per_row * top_k)))
