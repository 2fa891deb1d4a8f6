"""What the search asks of a model's costs; `megainfer.planner.costs` answers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Nodes, Route


class Bound(StrEnum):
    """What a stage, or a whole plan, waits for."""

    ATTENTION_BANDWIDTH = "attention bandwidth"  # weights and cache read
    ATTENTION_ARITHMETIC = "attention arithmetic"
    EXPERT_WEIGHTS = "expert weights"  # their bytes read
    EXPERT_ARITHMETIC = "expert arithmetic"
    NETWORK = "network"
    LATENCY = "latency"  # fixed times: launches, messages' ways
    MEMORY = "memory"  # no more sequences fit


@dataclass(frozen=True, slots=True)
class Stage:
    """Seconds of one stage, and what most of them are."""

    seconds: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Step:
    """What one micro-batch of one attention node computes in one step: `decode` sequences with
    `context` tokens each in the cache, and `prefill` prompt tokens that see `prefill_context`
    tokens each. All may be means."""

    decode: float
    context: float
    prefill: float = 0.0
    prefill_context: float = 0.0

    @property
    def rows(self) -> float:
        return self.decode + self.prefill


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device by kind."""

    weights: float
    kv: float = 0.0
    states: float = 0.0  # recurrent ones
    slots: float = 0.0  # of messages
    workspace: float = 0.0  # activations, and what programs take

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.states + self.slots + self.workspace

    def __add__(self, other: "Memory") -> "Memory":
        """Of both roles on one device."""
        return Memory(
            self.weights + other.weights,
            self.kv + other.kv,
            self.states + other.states,
            self.slots + other.slots,
            self.workspace + other.workspace,
        )


class Costs(Protocol):
    """One model's costs, in one dtype and with one skew of its router.

    All times are of one micro-batch. More rows, sequences or nodes never take less time or memory.
    """

    @property
    def moe_layers(self) -> int:
        """L: layers with experts, where the two halves take turns."""

    @property
    def num_experts(self) -> int:
        """E of one layer."""

    def attention_tps(self, device: Device) -> tuple[int, ...]:
        """Devices that an attention node may have: heads divide, and the domain holds them."""

    def expert_tps(self, device: Device) -> tuple[int, ...]:
        """Devices that an expert node may have."""

    def attention(self, nodes: Nodes, step: Step) -> Stage:
        """T_a: the attention half of one MoE layer on the slowest of `nodes`: the mean of all
        layers, dense ones' time divided among the MoE layers; gate, shared experts and the
        collectives of tensor parallelism included."""

    def experts(self, nodes: Nodes, rows: float) -> Stage:
        """T_e: one MoE layer on the slowest of `nodes`, when `rows` tokens in all came to them
        together (each to its top k)."""

    def head(self, nodes: Nodes, step: Step) -> Stage:
        """Embedding, head and sampling on one attention node, once a step."""

    def dispatch(self, route: Route, rows: float) -> Stage:
        """T_c there: one layer's messages, each attention node having `rows` tokens to send."""

    def combine(self, route: Route, rows: float) -> Stage:
        """T_c back."""

    def attention_memory(
        self, route: Route, micro_batches: int, sequences: float, step: Step
    ) -> Memory:
        """One device of an attention node that holds `sequences` of `step.context` tokens and
        computes at most `step` at a time."""

    def expert_memory(self, route: Route, micro_batches: int, rows: float) -> Memory:
        """One device of an expert node that is sent at most `rows` tokens by each attention node
        and micro-batch."""
