"""What administrators are told of every node."""

from typing import Any

from megainfer.frontend.engine_client import EngineClient
from megainfer.messages.message import Role
from server.operate.nodes import NodeBoard, NodeState


def node_report(engine: EngineClient, board: NodeBoard) -> dict[str, Any]:
    """The membership and each node, with its host where there are several: `serving`, `lost` (it is
    being started again), `hung` (it says nothing) or `apart` (no member; it loads, or was drained).
    """
    attendance, condition = engine.attendance, engine.condition
    nodes = [*board.of_role(Role.ATTENTION), *board.of_role(Role.EXPERT)]
    return {
        "state": str(condition.phase),
        "reason": condition.detail or None,
        "epoch": attendance.epoch,
        "nodes": [_node(node, engine, board) for node in nodes],
    }


def _node(node: NodeState, engine: EngineClient, board: NodeBoard) -> dict[str, Any]:
    lack = engine.attendance.lacks.get((node.role, node.index))
    restarts = restarts_of(node, engine, board)
    about: dict[str, Any] = {
        "name": node.name,
        "role": str(node.role),
        "node": node.index,
        "ranks": node.counters.get("ranks", 1),
        "state": state_of(node, engine, board),
        "incarnation": restarts,
        "restarts": restarts,
        "heartbeat_seconds": None if node.heard_at is None else round(board.silence(node), 3),
    }
    if board.places is not None:
        about["host"] = board.host_of(node)
    if node.role is Role.ATTENTION:
        about["roads"] = node.counters.get("m2n_roads", {})
    if lack is None:
        return about
    lost = round(engine.recovery.clock() - lack.since, 3)
    return {**about, "reason": lack.message, "lost_seconds": lost}


def restarts_of(node: NodeState, engine: EngineClient, board: NodeBoard) -> int:
    """As the supervisor counts; an API server that was started later hasn't heard of all."""
    heard = dict(engine.attendance.restarts()).get((node.role, node.index), 0)
    return max(heard, board.chronicle.restarts.get(node.name, 0))


def state_of(node: NodeState, engine: EngineClient, board: NodeBoard) -> str:
    """As `node_report` has it."""
    attendance = engine.attendance
    if (node.role, node.index) in attendance.lacks:
        return "lost"
    if not attendance.is_member(node.role, node.index):
        return "apart"
    return "serving" if board.is_up(node) else "hung"
