"""What administrators are told of every node."""

from typing import Any

from megainfer.frontend.engine_client import EngineClient
from megainfer.messages import Role
from server.operate.nodes import NodeBoard, NodeState


def node_report(engine: EngineClient, board: NodeBoard) -> dict[str, Any]:
    """The membership and each node: `serving`, `lost` (it is being started again), `hung` (it says
    nothing) or `apart` (no member; it loads, or was drained)."""
    attendance, condition = engine.attendance, engine.condition
    nodes = [*board.of_role(Role.ATTENTION), *board.of_role(Role.EXPERT)]
    return {
        "state": str(condition.phase),
        "reason": condition.detail or None,
        "epoch": attendance.epoch,
        "nodes": [_node(node, engine, board) for node in nodes],
    }


def _node(node: NodeState, engine: EngineClient, board: NodeBoard) -> dict[str, Any]:
    attendance = engine.attendance
    name = (node.role, node.index)
    lack = attendance.lacks.get(name)
    restarts = dict(attendance.restarts()).get(name, 0)
    about = {
        "name": node.name,
        "role": str(node.role),
        "node": node.index,
        "state": _state(node, engine, board),
        "incarnation": restarts,
        "restarts": restarts,
        "heartbeat_seconds": None if node.heard_at is None else round(board.silence(node), 3),
    }
    if lack is None:
        return about
    lost = round(engine.recovery.clock() - lack.since, 3)
    return {**about, "reason": lack.message, "lost_seconds": lost}


def _state(node: NodeState, engine: EngineClient, board: NodeBoard) -> str:
    attendance = engine.attendance
    if (node.role, node.index) in attendance.lacks:
        return "lost"
    if not attendance.is_member(node.role, node.index):
        return "apart"
    return "serving" if board.is_up(node) else "hung"
