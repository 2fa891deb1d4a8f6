"""What the nodes of a running instance have counted between two looks at them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megainfer.config import BLOCK_SIZE
from megainfer.planner.live.terms import Load, Terms

ATTENTION_STAGES = ("combine", "attention", "dispatch", "shared")
"""What T_a is made of."""
EXPERT_STAGES = ("expert", "reply")
"""What T_e is made of."""
STEP_STAGES = ("schedule", "embed", "head", "sample")
"""What an attention node does once a step."""

NOW = ("running", "micro_batches", "num_blocks", "free_blocks")
"""What of a node's counters says how it is."""


@dataclass(frozen=True, slots=True)
class NodeWork:
    """One node's, under the names that nodes have for them. grown: by how much counters grew.
    now: what was so in the end, of `NOW`."""

    grown: Mapping[str, float]
    now: Mapping[str, float]

    def seconds(self, stages: Sequence[str]) -> float:
        """Of work at these stages."""
        return sum(self.grown.get(f"{stage}_seconds", 0.0) for stage in stages)

    def runs(self, stage: str) -> float:
        """How often it ran."""
        return self.grown.get(f"{stage}_count", 0.0)


@dataclass(frozen=True, slots=True)
class Window:
    """seconds: between the two looks. attention, experts: the nodes of each role."""

    seconds: float
    attention: tuple[NodeWork, ...]
    experts: tuple[NodeWork, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """load: of a micro-batch's step. terms: as measured. idle: the share of time without work, of
    attention nodes and of expert nodes. generated: tokens a second of the whole instance."""

    load: Load
    terms: Terms
    idle: tuple[float, float]
    generated: float


def measured(window: Window) -> Measured | None:
    """None where no step was made, or no expert was asked."""
    steps = _sum(window.attention, "steps")
    generated = _sum(window.attention, "generated_tokens")
    layer_runs = sum(map(_layer_runs, window.attention))
    expert_runs = sum(node.runs("expert") for node in window.experts)
    if min(steps, generated, layer_runs, expert_runs, window.seconds) <= 0:
        return None
    rows = generated / steps
    load = Load(
        rows=rows,
        prefill_rows=max(0.0, (_sum(window.attention, "step_rows") - generated) / steps),
        context=_context(window.attention),
        micro_batches=_in_use(window.attention, rows),
        attention=len(window.attention),
        experts=len(window.experts),
        layers=max(1, round(layer_runs / steps)),
    )
    terms = Terms(
        attention=_seconds(window.attention, ATTENTION_STAGES) / layer_runs,
        # All attention nodes wait for the busiest expert node.
        experts=max(
            node.seconds(EXPERT_STAGES) / node.runs("expert")
            for node in window.experts
            if node.runs("expert")
        ),
        transfer=_transfer(window),
        outside=_seconds(window.attention, STEP_STAGES) / steps,
        token=window.seconds * load.micro_batches * load.attention / steps,
    )
    idle = (_idle(window.attention, window.seconds), _idle(window.experts, window.seconds))
    return Measured(load, terms, idle, generated / window.seconds)


def _in_use(nodes: Sequence[NodeWork], rows: float) -> int:
    """Micro-batches of an attention node that have sequences, `rows` each: a server may be set to
    more of them than it has requests for. All of them where none is known to run."""
    m = max(1, round(_mean([node.now.get("micro_batches", 1.0) for node in nodes])))
    running = sum(node.now.get("running", 0.0) for node in nodes) / len(nodes)
    if not running or not rows:
        return m
    return min(m, max(1, round(running / rows)))


def _layer_runs(node: NodeWork) -> float:
    """Layers with experts that its steps passed: one dispatch each, where any are sent."""
    return node.runs("dispatch") or node.runs("attention")


def _transfer(window: Window) -> float:
    """Of one direction: the mean over messages that found their receiver waiting."""
    nodes = (*window.attention, *window.experts)
    count = _sum(nodes, "transfers")
    return _sum(nodes, "transfer_ns") / 1e9 / count if count else 0.0


def _context(nodes: Sequence[NodeWork]) -> float:
    """Positions of a sequence, by the blocks that all of them have; the last one of each is half
    full."""
    running = sum(node.now.get("running", 0.0) for node in nodes)
    blocks = sum(
        node.now.get("num_blocks", 0.0) - node.now.get("free_blocks", 0.0) for node in nodes
    )
    return max(1.0, (blocks / running - 0.5) * BLOCK_SIZE) if running else 1.0


def _idle(nodes: Sequence[NodeWork], seconds: float) -> float:
    busy = _sum(nodes, "busy_seconds") / seconds / len(nodes)
    return max(0.0, 1.0 - busy)


def _seconds(nodes: Sequence[NodeWork], stages: Sequence[str]) -> float:
    return sum(node.seconds(stages) for node in nodes)


def _sum(nodes: Sequence[NodeWork], counter: str) -> float:
    return sum(node.grown.get(counter, 0.0) for node in nodes)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
