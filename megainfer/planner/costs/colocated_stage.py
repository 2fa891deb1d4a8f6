"""What nodes take that have both roles: the baseline, one layer after the other."""

from dataclasses import dataclass, field
from math import ceil

from megainfer.errors import ConfigError
from megainfer.memory import Ledger
from megainfer.planner.costs.attention_stage import AttentionStage, process
from megainfer.planner.costs.collectives import all_gather, all_reduce
from megainfer.planner.costs.expert_stage import ExpertStage
from megainfer.planner.costs.model import ModelCosts
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.costs.step import Step
from megainfer.planner.hardware import Device


@dataclass(frozen=True, slots=True)
class ColocatedStage:
    """`dp` groups of `tp` devices, each with requests of its own; all devices share the experts.

    ep: experts are dealt to so many groups, within which the devices share each of them; 1: all
    devices share all of them, dp * tp: each device has whole ones (wide expert parallelism).
    spares: experts that each of these groups holds beyond its share.

    Raises ConfigError where dp * tp devices can't form ep groups, or as the stages do.
    """

    costs: ModelCosts
    device: Device
    tp: int = 1
    dp: int = 1
    ep: int = 1
    spares: int = 0
    half: AttentionStage = field(init=False, repr=False, compare=False)
    own_experts: ExpertStage = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.dp < 1 or self.ep < 1 or self.devices % self.ep:
            raise ConfigError(
                f"{self.dp} x {self.tp} devices can't form {self.ep} groups of experts; use a "
                "number that divides them"
            )
        half = AttentionStage(self.costs, self.device, self.tp)
        width = self.devices // self.ep
        experts = ExpertStage(self.costs, self.device, width, self.ep, self.spares)
        object.__setattr__(self, "half", half)
        object.__setattr__(self, "own_experts", experts)

    @property
    def devices(self) -> int:
        return self.dp * self.tp

    def layer(self, step: Step) -> Time:
        """A layer with experts, of a step on each of the dp groups."""
        return self.attention(step) + self.exchange(step) + self.experts(step)

    def outside(self, step: Step) -> Time:
        """As `AttentionStage.outside`."""
        return self.half.outside(step)

    def attention(self, step: Step) -> Time:
        """T_a."""
        return self.half.layer(step)

    def experts(self, step: Step) -> Time:
        """T_e."""
        return self.own_experts.products(self.dp * step.rows)

    def exchange(self, step: Step) -> Time:
        """T_c of both directions. Ranks that have all rows anyway, or share all experts, sum over
        all of them; else rows go to the groups of their experts and back."""
        rows = self.dp * step.rows
        if self.dp == 1 or self.ep == 1:
            return all_reduce(self.device, rows * self.costs.row_bytes, self.devices)
        there, back = (
            self._all_to_all(step.rows, size)
            for size in (self.costs.dispatch_bytes, self.costs.row_bytes)
        )
        sent = rows * self.own_experts.nodes.most_sent * self.costs.row_bytes
        summed = all_reduce(self.device, sent, self.own_experts.tp)
        # Each device of a group had a part of its rows answered; all need all of them.
        gathered = all_gather(self.device, step.rows * self.costs.row_bytes, self.tp)
        return there + back + summed + gathered

    def memory(self, tokens: float, sequences: int, rows: int) -> Ledger:
        """Bytes of one device; tokens, sequences and rows are of one of the dp groups."""
        workspace = self.half.workspace(rows, 1, sequences)
        workspace += self.own_experts.workspace(self.dp * rows)
        held = self.half.held(tokens, sequences) + self.own_experts.held()
        return held + process(self.device, workspace, 0)

    def _all_to_all(self, rows: float, row_bytes: int) -> Time:
        """One direction. A row crosses between domains once for each domain, and is passed on
        within it; both happen at once."""
        device, efficiency = self.device, self.device.efficiency
        near = min(self.devices, device.link.devices)
        domains = ceil(self.devices / near)
        own = rows / self.tp * row_bytes
        groups = self.own_experts.nodes
        message = own * groups.fanout / groups.count / max(1, self.own_experts.tp)
        within = own * groups.fanout * (1 - 1 / self.devices)
        seconds = within / (device.link.bytes_per_second * efficiency.link.at(message))
        fixed = device.link.latency_seconds
        if domains > 1:
            crossing = self.costs.nodes(min(domains, self.ep)).fanout * (1 - 1 / domains)
            rate = device.nic.bytes_per_second * efficiency.nic.at(own * crossing / domains)
            seconds = max(seconds, own * crossing / rate)
            fixed += device.nic.latency_seconds
        return Time(network=seconds, fixed=fixed)
