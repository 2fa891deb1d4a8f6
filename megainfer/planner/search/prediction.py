"""What a deployment is expected to give."""

from dataclasses import dataclass

from megainfer.planner.search.costs import Bound, Memory, Stage
from megainfer.planner.search.deployment import Deployment
from megainfer.planner.search.workload import Objective


@dataclass(frozen=True, slots=True)
class Prediction:
    """Stages are of one MoE layer and one micro-batch: T_a, T_e, T_c both ways; head: of one
    micro-batch's step. Tokens a second are of all replicas. ttft_seconds: None where prompts are
    computed elsewhere. expert_memory: None where both roles share devices, of whose memory
    attention_memory then says everything."""

    deployment: Deployment
    attention: Stage
    experts: Stage
    dispatch: Stage
    combine: Stage
    head: Stage
    tpot_seconds: float
    ttft_seconds: float | None
    attention_memory: Memory
    expert_memory: Memory | None
    bound: Bound

    @property
    def tokens_per_second(self) -> float:
        return self.deployment.replicas * self.deployment.batch / self.tpot_seconds

    @property
    def per_gpu(self) -> float:
        """Tokens a second and device."""
        return self.deployment.batch / self.tpot_seconds / self.deployment.devices

    @property
    def per_price(self) -> float:
        """Tokens a second and unit of price (an L20)."""
        return self.deployment.batch / self.tpot_seconds / self.deployment.price

    @property
    def per_watt(self) -> float:
        """Tokens a second and watt."""
        return self.deployment.batch / self.tpot_seconds / self.deployment.watts

    @property
    def per_user(self) -> float:
        """Tokens a second of one sequence."""
        return 1 / self.tpot_seconds

    def value(self, objective: Objective) -> float:
        """How good it is: more is better."""
        match objective:
            case Objective.GPU:
                return self.per_gpu
            case Objective.COST:
                return self.per_price
            case Objective.WATT:
                return self.per_watt
            case Objective.LATENCY:
                return self.per_user
