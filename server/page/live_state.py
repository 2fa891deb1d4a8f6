"""What the live view is told once a second, all from what the server knows anyway.

Counts are totals since the start and times are of the nodes' clocks: the page makes rates of them,
so the server remembers nothing for anybody who looks.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from megainfer import __version__
from megainfer.instruments.distribution import Distribution
from megainfer.messages import Role
from server.operate.health import HealthReport
from server.operate.metrics.engines import kv_usage
from server.operate.metrics.experts import ExpertMap
from server.operate.metrics.exposition import Counted
from server.operate.metrics.nodes import STAGES
from server.operate.nodes import NodeBoard, NodeState

M2N = ("messages_sent", "rows_sent", "bytes_sent", "messages_received", "rows_received")
OF_ATTENTION = ("running", "waiting", "micro_batches", "num_blocks", "free_blocks", "steps")
OF_EXPERTS = ("batches", "rows")


def live_state(counted: Counted, report: HealthReport) -> dict[str, Any]:
    """Everything but the timeline. problem: why new requests aren't computed now, None: they are;
    lacking: what isn't there, though they are."""
    board, engines = counted.board, counted.requests.engines.values()
    attention, experts = board.of_role(Role.ATTENTION), board.of_role(Role.EXPERT)
    return {
        "model": counted.model,
        "version": __version__,
        "problem": None if report.takes_requests else report.reason,
        "lacking": report.reason if report.takes_requests else None,
        "epoch": counted.engine.attendance.epoch,
        "running": _total(attention, "running"),
        "waiting": _total(attention, "waiting"),
        "in_flight": counted.occupancy.in_flight,
        "kv_usage": sum(map(kv_usage, attention)) / len(attention) if attention else 0.0,
        "prompt_tokens": counted.requests.prompt_tokens,
        "generation_tokens": counted.requests.generation_tokens,
        "first_token": _sum(engine.first_token for engine in engines),
        "between_tokens": _sum(engine.between_tokens for engine in engines),
        "nodes": [_node(node, board, counted.experts) for node in (*attention, *experts)],
        "expert_load": expert_load(experts, counted.experts),
    }


def expert_load(nodes: Sequence[NodeState], where: ExpertMap) -> dict[str, Any]:
    """layers: their numbers. experts: global ids, node by node. tokens: [layer][expert], of all
    replicas. homes: each expert's node in the first layer, the first where it has several."""
    homes: dict[int, int] = {}
    for node, layers in enumerate(map(partial(_held, where=where), nodes)):
        for expert in layers[0]:
            homes.setdefault(expert, node)
    for node, state in enumerate(nodes):  # what is on its way may be in nobody's word of a moment
        for layer in state.counters.get("expert_tokens", []):
            for expert in layer:
                homes.setdefault(expert, node)
    ids = sorted(homes, key=lambda expert: (homes[expert], expert))
    column = {expert: position for position, expert in enumerate(ids)}
    tokens = [[0] * len(ids) for _ in where.layers]
    for state in nodes:
        said = state.counters.get("expert_tokens", [])
        for row, layer in zip(tokens, said, strict=False):
            for expert, count in layer.items():
                row[column[expert]] += count
    return {
        "layers": list(where.layers),
        "experts": ids,
        "homes": [homes[expert] for expert in ids],
        "tokens": tokens,
    }


def _node(node: NodeState, board: NodeBoard, where: ExpertMap) -> dict[str, Any]:
    said = node.counters
    about = {
        "name": node.name,
        "role": str(node.role),
        "index": node.index,
        "up": board.is_up(node),
        "lost": node.lost,
        "silence": round(board.silence(node), 1),
        "idle_share": round(node.idle_share(), 4),
        "clock_seconds": said.get("clock_seconds", 0.0),
        "stage_seconds": {s: said.get(f"{s}_seconds", 0.0) for s in STAGES[node.role]},
        **{name: said.get(name, 0) for name in M2N},
    }
    if node.role is Role.ATTENTION:
        own = {name: said.get(name, 0) for name in OF_ATTENTION}
        return {**about, **own, "kv_usage": round(kv_usage(node), 4)}
    held = [len(layer) for layer in _held(node, where)]
    own = {name: said.get(name, 0) for name in OF_EXPERTS}
    return {**about, **own, "experts": max(held, default=0)}


def _held(node: NodeState, where: ExpertMap) -> Sequence[Sequence[int]]:
    """By layer, what an expert node holds, as it says or as was planned."""
    planned = where.experts[node.index] if node.index < len(where.experts) else [()]
    held: Sequence[Sequence[int]] = node.counters.get("experts_held", planned)
    return held


def _total(nodes: Iterable[NodeState], counter: str) -> int:
    return sum(node.counters.get(counter, 0) for node in nodes)


def _sum(distributions: Iterable[Distribution]) -> dict[str, Any]:
    """As `Distribution.as_dict`; all have the same bounds."""
    parts = list(distributions)
    return {
        "bounds": parts[0].bounds,
        "counts": [sum(column) for column in zip(*(part.counts for part in parts), strict=True)],
        "total": sum(part.total for part in parts),
    }
