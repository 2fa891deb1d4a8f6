"""What the live view is told of one node."""

import time
from typing import Any

from megainfer.messages.message import Role
from server.operate.metrics.engines import kv_usage
from server.operate.metrics.exposition import Counted
from server.operate.metrics.nodes import STAGES
from server.operate.node_report import restarts_of, state_of
from server.operate.nodes import NodeState
from server.page.expert_load import held_by

M2N = ("messages_sent", "rows_sent", "bytes_sent", "messages_received", "rows_received")
OF_ATTENTION = ("running", "waiting", "micro_batches", "num_blocks", "free_blocks", "steps")
OF_EXPERTS = ("batches", "rows")


def node_view(node: NodeState, counted: Counted) -> dict[str, Any]:
    """Its state, and totals since its start by its own clock."""
    said, board = node.counters, counted.board
    state = _state(node, counted)
    about = {
        "name": node.name,
        "role": str(node.role),
        "index": node.index,
        "state": state,
        "away_seconds": _away_seconds(node, counted),
        "back_seconds": None if (back := board.back_seconds(node)) is None else round(back, 1),
        "restarts": restarts_of(node, counted.engine, board),
        "silence": round(board.silence(node), 1),
        "idle_share": round(node.idle_share(), 4),
        "clock_seconds": said.get("clock_seconds", 0.0),
        "stage_seconds": {s: said.get(f"{s}_seconds", 0.0) for s in STAGES[node.role]},
        "host_seconds": _host_seconds(node),
        **{name: said.get(name, 0) for name in M2N},
    }
    if node.role is Role.ATTENTION:
        own = {name: said.get(name, 0) for name in OF_ATTENTION}
        return {**about, **own, "kv_usage": round(kv_usage(node), 4)}
    held = [len(layer) for layer in held_by(node, counted.experts)]
    own = {name: said.get(name, 0) for name in OF_EXPERTS}
    return {**about, **own, "experts": max(held, default=0)}


def _host_seconds(node: NodeState) -> float | None:
    """In which the host of one on a GPU worked, or gave it work; None where the host is all."""
    names = [f"host_{stage}_seconds" for stage in STAGES[node.role]]
    told = [node.counters[name] for name in names if name in node.counters]
    return sum(told) if told else None


def _state(node: NodeState, counted: Counted) -> str:
    """As in `/admin/nodes`, but `returning` for one that was lost and has a process again, and
    `joining` for one apart that has never served."""
    state = state_of(node, counted.engine, counted.board)
    away = counted.board.chronicle.away.get(node.name)
    if state == "lost" and away is not None and away.returning:
        return "returning"
    return "joining" if state == "apart" and not node.has_served else state


def _away_seconds(node: NodeState, counted: Counted) -> float | None:
    """Since it was lost, as the supervisor knows it or else since it was heard of here."""
    if (away := counted.board.chronicle.away.get(node.name)) is not None:
        return round(max(0.0, time.time() - away.since), 1)
    lack = counted.engine.attendance.lacks.get((node.role, node.index))
    return None if lack is None else round(counted.engine.recovery.clock() - lack.since, 1)
