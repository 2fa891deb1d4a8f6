"""What the search asks of a model's costs; `megainfer.planner.costs` answers."""

from typing import Protocol

from megainfer.memory import Ledger
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.costs.step import Step
from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Nodes


class AttentionCosts(Protocol):
    """One attention node."""

    def layer(self, step: Step, expert_nodes: int, spares: int = 0) -> Time:
        """T_a: of one MoE layer, the mean of all. Rows are packed for so many expert nodes, each of
        which holds `spares` experts beyond its share."""

    def outside(self, step: Step) -> Time:
        """Once a step: embedding, dense layers, head, sampling."""

    def memory(
        self, tokens: float, sequences: int, rows: int, micro_batches: int, expert_nodes: int
    ) -> Ledger:
        """Bytes of one device: `sequences` with so many tokens in all in the cache, steps of at
        most so many rows."""


class ExpertCosts(Protocol):
    """The slowest, or the fullest, of an instance's expert nodes."""

    def layer(self, rows: float) -> Time:
        """T_e: of one MoE layer, when so many tokens came from all attention nodes together."""

    def memory(self, rows: int, micro_batches: int, attention_nodes: int) -> Ledger:
        """Bytes of one device. rows: that one attention node sends at most."""


class RoadCosts(Protocol):
    """T_c of one layer, each attention node having so many rows. asleep: whoever receives them has
    waited for longer than `awake_seconds`, and must be woken."""

    @property
    def awake_seconds(self) -> float: ...

    def dispatch(self, rows: float, asleep: bool = False) -> Time: ...

    def combine(self, rows: float, asleep: bool = False) -> Time: ...


class ColocatedCosts(Protocol):
    """Both halves on the same devices, in turn. step: of one data-parallel group."""

    def attention(self, step: Step) -> Time: ...

    def experts(self, step: Step) -> Time: ...

    def exchange(self, step: Step) -> Time:
        """To the experts and back."""

    def outside(self, step: Step) -> Time: ...

    def memory(self, tokens: float, sequences: int, rows: int) -> Ledger: ...


class Costs(Protocol):
    """One model's, in one precision and with one popularity of its experts.

    More rows, tokens, sequences or nodes never take less time or memory, but more expert nodes each
    have less to do, and messages beyond a scale-up domain may be faster. How much a role's nodes
    need doesn't depend on the other role's devices.
    """

    @property
    def moe_layers(self) -> int:
        """L: where the halves take turns."""

    @property
    def num_experts(self) -> int:
        """E of one layer."""

    def attention(self, device: Device, tp: int) -> AttentionCosts:
        """Raises ConfigError where the model's heads can't be shared by so many devices."""

    @property
    def experts_alike(self) -> bool:
        """Whether tokens choose all experts as often, so that copies of one spare nothing."""

    def experts(self, device: Device, tp: int, nodes: int, spares: int = 0) -> ExpertCosts:
        """spares: experts that each node holds beyond its share."""

    def road(self, attention: Nodes, experts: Nodes) -> RoadCosts: ...

    def colocated(
        self, device: Device, tp: int, dp: int, ep: int, spares: int = 0
    ) -> ColocatedCosts:
        """dp groups of tp devices; experts dealt to ep groups of tp dp / ep of them, which share
        each of theirs. Experts and exchange take at least what such expert nodes would."""
