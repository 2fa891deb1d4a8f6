"""What a server's /metrics say of its nodes, under the names that nodes have for it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from megainfer.errors import MegaInferError
from megainfer.planner.live.work import NodeWork, Window
from megainfer.planner.profiles import StageProfile

PREFIX = "megainfer:"
ATTENTION, EXPERT = "attention", "expert"
OF_NODES = {
    "node_busy_seconds_total": ("busy_seconds", 1.0),
    "m2n_timed_transfers_total": ("transfers", 1.0),
    "m2n_transfer_seconds_total": ("transfer_ns", 1e9),
}
"""Sample -> the counter, and what its unit is there."""
OF_STAGES = {
    "node_stage_seconds_total": "seconds",
    "node_stage_runs_total": "count",
}
OF_ENGINES = {
    "steps_total": "steps",
    "iteration_tokens_total_sum": "step_rows",
    "generation_tokens_total": "generated_tokens",
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "micro_batches": "micro_batches",
    "kv_cache_usage_perc": "kv_usage",
}
COUNTERS = ("seconds", "count", "ns", "steps", "rows", "tokens", "transfers")
"""What the names of those end with that only grow."""

Node = tuple[str, str]
"""Role and number."""


class Sample(NamedTuple):
    """One line of /metrics, as a parser has it."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Scrape:
    """at: seconds of any clock. counted: of each node that is up. profile: of the stages, by term;
    empty where the server's start didn't measure them. together: both roles are one process."""

    at: float
    counted: Mapping[Node, Mapping[str, float]]
    profile: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Iterable[Sample], at: float) -> "Scrape":
        """Raises MegaInferError where these aren't MegaInfer's, or no node is up."""
        nodes: defaultdict[Node, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        up = set[Node]()
        curves = defaultdict[str, list[tuple[int, float]]](list)
        for sample in samples:
            name, labels = sample.name.removeprefix(PREFIX), sample.labels
            if name == "node_up" and sample.value:
                up.add((labels["role"], labels["node"]))
            elif name == "profiled_seconds":
                curves[labels["term"]].append((int(labels["rows"]), sample.value))
            for node, counter, value in _counted(name, labels, sample.value):
                nodes[node][counter] += value
        if not {role for role, _ in up} >= {ATTENTION, EXPERT}:
            raise MegaInferError(
                "these metrics name no attention node and expert node that are up: is that a "
                "MegaInfer server, and does it serve?"
            )
        return cls(
            at,
            {node: nodes[node] for node in sorted(up)},
            {term: tuple(sorted(points)) for term, points in curves.items()},
        )

    @property
    def stages(self) -> StageProfile | None:
        """None where the start didn't measure them."""
        return StageProfile.of(self.profile) if self.profile else None

    @property
    def waiting(self) -> float:
        """Requests that wait."""
        return sum(counters.get("waiting", 0.0) for counters in self.counted.values())

    @property
    def pulse(self) -> float:
        """Changes whenever a busy node has told its counters anew."""
        return sum(counters.get("busy_seconds", 0.0) for counters in self.counted.values())


def _counted(
    name: str, labels: Mapping[str, str], value: float
) -> Iterator[tuple[Node, str, float]]:
    if name in OF_NODES:
        counter, unit = OF_NODES[name]
        yield (labels["role"], labels["node"]), counter, value * unit
    elif name in OF_STAGES:
        yield (labels["role"], labels["node"]), f"{labels['stage']}_{OF_STAGES[name]}", value
    elif name in OF_ENGINES:
        yield (ATTENTION, labels["engine"]), OF_ENGINES[name], value
    elif name == "cache_config_info":
        yield (ATTENTION, labels["engine"]), "num_blocks", float(labels["num_gpu_blocks"])


def window_between(first: Scrape, last: Scrape) -> Window:
    """Of the nodes that were there at both. Raises MegaInferError where one was started anew in
    between, and counts from zero."""
    both = [node for node in last.counted if node in first.counted]
    works = {node: _work(node, first.counted[node], last.counted[node]) for node in both}
    return Window(
        last.at - first.at,
        tuple(work for (role, _), work in works.items() if role == ATTENTION),
        tuple(work for (role, _), work in works.items() if role == EXPERT),
    )


def _work(node: Node, before: Mapping[str, float], after: Mapping[str, float]) -> NodeWork:
    grown = {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if name.endswith(COUNTERS)
    }
    if any(value < 0 for value in grown.values()):
        raise MegaInferError(f"{' node '.join(node)} was started again meanwhile; ask once more")
    blocks = after.get("num_blocks", 0.0)
    free = blocks * (1 - after.get("kv_usage", 0.0))
    return NodeWork(grown, {**after, "free_blocks": free})
