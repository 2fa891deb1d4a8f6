"""What a deployment is expected to give."""

from dataclasses import dataclass
from enum import StrEnum

from megainfer.memory import Ledger
from megainfer.planner.search.deployment import Deployment
from megainfer.planner.search.stages import Pace, Stages
from megainfer.planner.search.workload import Objective


class Limit(StrEnum):
    """Why there can't be more sequences at a time."""

    MEMORY = "memory"
    TPOT = "time between tokens"
    TTFT = "time to first token"


@dataclass(frozen=True, slots=True)
class Prediction:
    """layers: MoE layers. ttft_seconds: None where prompts are computed elsewhere. memory: of one
    device of each of `deployment.roles`. limit: None where more sequences would fit and be in
    time, but bring less."""

    deployment: Deployment
    layers: int
    stages: Stages
    pace: Pace
    ttft_seconds: float | None
    memory: tuple[Ledger, ...]
    limit: Limit | None

    @property
    def tpot_seconds(self) -> float:
        return self.pace.seconds

    @property
    def instance_tokens_per_second(self) -> float:
        return self.deployment.batch / self.tpot_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all replicas."""
        return self.deployment.replicas * self.instance_tokens_per_second

    @property
    def per_gpu(self) -> float:
        """Tokens a second and device."""
        return self.value(Objective.GPU)

    @property
    def per_price(self) -> float:
        """Tokens a second and unit of price (an L20)."""
        return self.value(Objective.COST)

    @property
    def per_watt(self) -> float:
        """Tokens a second and watt."""
        return self.value(Objective.WATT)

    @property
    def per_user(self) -> float:
        """Tokens a second of one sequence."""
        return 1 / self.tpot_seconds

    def value(self, objective: Objective) -> float:
        """How good it is: more is better."""
        if objective is Objective.LATENCY:
            return self.per_user
        return self.instance_tokens_per_second / self.deployment.spent(objective)

    @property
    def bound(self) -> str:
        """What sets the pace, and what most of that is, such as "expert weights"."""
        pace, stages = self.pace, self.stages
        attention = stages.attention * self.layers + stages.outside
        if self.deployment.together or pace.seconds == pace.round_trip:
            return self._largest_part()
        if pace.seconds == pace.attention:
            return f"attention {attention.bound}"
        if pace.seconds == pace.experts:
            return f"expert {stages.experts.bound}"
        return "network"

    def _largest_part(self) -> str:
        """Of one micro-batch's way through all stages."""
        stages = self.stages
        attention = stages.attention * self.layers + stages.outside
        experts = stages.experts * self.layers
        ways = (stages.dispatch + stages.combine) * self.layers
        totals = {
            f"attention {attention.bound}": attention.total,
            f"expert {experts.bound}": experts.total,
            "network" if ways.bound == "network" else "latency": ways.total,
        }
        return max(totals, key=lambda name: totals[name])
