"""What can be simulated, and what comes of it."""

import math
from dataclasses import dataclass, field
from typing import Literal

from megainfer.errors import ConfigError
from megainfer.gather import GatherLimits
from megainfer.simulator.feed import Load
from megainfer.simulator.request import Latencies
from megainfer.simulator.work import FREE, AttentionStage, Cost, RowStage

Policy = Literal["gather", "greedy", "lockstep"]
ATTENTION, EXPERT = Cost(0.6e-3, 12.5e-6), Cost(1.0e-3, 0.3e-6)
"""Made up: experts are bound by reading their weights."""


@dataclass(frozen=True)
class Spell:
    """An attention node takes `factor` times as long from `start` to `end`."""

    node: int
    factor: float
    start: float = 0.0
    end: float = math.inf


@dataclass(frozen=True)
class Chance:
    """With this probability something takes `factor` times as long."""

    probability: float = 0.0
    factor: float = 10.0


@dataclass(frozen=True)
class Scenario:
    """What to simulate. Times in seconds. Equal scenarios give equal outcomes.

    Without a load every step of every micro-batch has the same `rows`.
    """

    policy: Policy = "gather"
    attention_nodes: int = 8
    expert_nodes: int = 4
    micro_batches: int = 2
    layers: int = 24
    rows: int = 32  # tokens of one attention node's micro-batch in each step
    choosing: float = 0.5  # the share of them that has an expert on a given expert node
    choosing_each: tuple[float, ...] = ()  # the same of each expert node; () for `choosing`
    attention: AttentionStage = ATTENTION
    expert: RowStage = EXPERT
    expert_factors: tuple[float, ...] = ()  # on each expert node's times; () for 1 each
    sampling: AttentionStage = FREE  # of a step, after its last layer
    transfer: float = 0.05e-3  # in one direction
    dispatch: RowStage | None = None  # in place of `transfer`, by a micro-batch's rows
    combine: RowStage | None = None  # the same of replies
    queued_transfers: bool = False  # an attention node's go one after the other, each way
    load: Load | None = None
    jitter: float = 0.1  # standard deviation of a stage's time, as a share of it
    unevenness: float = 1.0  # the slowest attention node's factor; the fastest has 1
    spells: tuple[Spell, ...] = ()
    stalls: Chance = Chance()  # that one attention half takes longer
    long_steps: Chance = Chance()  # that all attention halves of a step do, as in a prefill
    zero_rows: float = 0.0  # probability that a message has no rows
    rests: float = 0.0  # probability that a micro-batch rests after a step
    rest_time: float = 20e-3
    joins: tuple[tuple[int, float], ...] = ()  # (attention node, when); the others are there at 0
    deaths: tuple[tuple[int, float], ...] = ()  # (attention node, when)
    detection: float = 5e-3  # after which the expert nodes know of a death
    limits: GatherLimits = field(default_factory=GatherLimits)
    duration: float = 2.0
    warm_up: float = 0.3  # not counted
    recorded: float = 0.0  # seconds from the end of the warm-up whose spans are kept
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < self.duration:
            raise ConfigError(f"warm_up {self.warm_up} s must be less than {self.duration} s")
        if self.expert_factors and len(self.expert_factors) != self.expert_nodes:
            raise ConfigError(
                f"{len(self.expert_factors)} factors for {self.expert_nodes} expert nodes"
            )
        if self.choosing_each and len(self.choosing_each) != self.expert_nodes:
            raise ConfigError(
                f"{len(self.choosing_each)} shares of rows for {self.expert_nodes} expert nodes"
            )
        if self.policy == "lockstep" and (self.joins or self.rests or self.load):
            raise ConfigError("lockstep knows no joins and no rests; use another policy")

    def transfer_of(self, stage: RowStage | None, rows: int) -> float:
        """Seconds that the messages of a micro-batch with so many rows take in this direction."""
        return self.transfer if stage is None else stage.of(rows)

    def slowness(self, node: int, now: float) -> float:
        """The factor on an attention node's stage times at this time."""
        share = node / max(1, self.attention_nodes - 1)
        factor = 1 + (self.unevenness - 1) * share
        for spell in self.spells:
            if spell.node == node and spell.start <= now < spell.end:
                factor *= spell.factor
        return factor


@dataclass(frozen=True, slots=True)
class Span:
    """What a node did from `start` to `end`, in seconds. layer: None of sampling."""

    role: Literal["attention", "expert"]
    node: int
    micro_batch: int
    layer: int | None
    start: float
    end: float
    rows: int


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario after its warm-up."""

    tokens_per_second: float
    node_tokens: tuple[float, ...]  # of each attention node; a part of a step counts as that part
    sources_per_batch: float
    rows_per_batch: float
    attention_idle: float  # share of the time; mean over the attention nodes while they live
    expert_idle: float
    longest_wait: float  # of a message with rows, from its arrival to its batch
    unanswered: float  # how long the oldest message with rows has waited at the end
    latencies: Latencies = field(default_factory=Latencies)  # of a load
    spans: tuple[Span, ...] = ()
