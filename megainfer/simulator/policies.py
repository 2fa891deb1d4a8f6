"""The gather and the two baselines that it is compared with."""

from dataclasses import dataclass
from typing import Protocol

from megainfer.gather import Batch, Gather
from megainfer.simulator.scenario import Scenario


class Rule(Protocol):
    """What a simulated expert node asks of a policy; `Gather` is one."""

    def joined(self, source: int) -> None: ...
    def left(self, source: int) -> None: ...
    def rest(self, source: int, micro_batch: int) -> None: ...
    def arrived(self, source: int, micro_batch: int, layer: int, rows: int, now: float) -> None: ...
    def next(self, now: float) -> Batch | None: ...
    def deadline(self) -> float | None: ...
    def served(self, batch: Batch, started: float, ended: float) -> None: ...


def rule_of(scenario: Scenario) -> Rule:
    """A fresh rule for one expert node."""
    if scenario.policy == "gather":
        return Gather(scenario.micro_batches, 0, scenario.limits)
    return Greedy() if scenario.policy == "greedy" else Lockstep()


@dataclass
class _Message:
    source: int
    micro_batch: int
    step: int
    layer: int
    rows: int
    since: float


class Greedy:
    """Serves whatever waits: the oldest message, and all others of its micro-batch and layer."""

    def __init__(self) -> None:
        self.sources: set[int] = set()
        self.latest: dict[tuple[int, int], _Message] = {}

    def joined(self, source: int) -> None:
        self.sources.add(source)

    def left(self, source: int) -> None:
        self.sources.discard(source)
        self.latest = {key: m for key, m in self.latest.items() if m.source != source}

    def rest(self, source: int, micro_batch: int) -> None:
        self.latest.pop((source, micro_batch), None)

    def arrived(self, source: int, micro_batch: int, layer: int, rows: int, now: float) -> None:
        before = self.latest.get((source, micro_batch))
        step = before.step + (layer <= before.layer) if before else 0
        self.latest[source, micro_batch] = _Message(source, micro_batch, step, layer, rows, now)

    def next(self, now: float) -> Batch | None:
        waiting = [m for m in self.latest.values() if m.rows and self.may_go(m)]
        if not waiting:
            return None
        oldest = min(waiting, key=lambda m: m.since)
        place = oldest.micro_batch, oldest.layer
        rows: dict[int, int] = {}
        for m in self.latest.values():
            if m.rows and (m.micro_batch, m.layer) == place:
                rows[m.source], m.rows = m.rows, 0
        return Batch(*place, rows, frozenset(rows), frozenset())

    def may_go(self, message: _Message) -> bool:
        return True

    def deadline(self) -> float | None:
        return None

    def served(self, batch: Batch, started: float, ended: float) -> None:
        pass


class Lockstep(Greedy):
    """Serves a layer when every attention node alive has come as far. Waits without a bound."""

    def may_go(self, message: _Message) -> bool:
        others = [self.latest.get((source, message.micro_batch)) for source in self.sources]
        return all(m and (m.step, m.layer) >= (message.step, message.layer) for m in others)
