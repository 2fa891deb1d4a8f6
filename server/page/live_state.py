"""What the live view is told once a second, all from what the server knows anyway.

Counts are totals since the start and times are of the nodes' clocks: the page makes rates of them,
so the server remembers nothing for anybody who looks.
"""

from collections.abc import Iterable
from typing import Any

from megainfer import __version__
from megainfer.messages.message import Role
from server.operate.health import HealthReport
from server.operate.metrics.engines import kv_usage
from server.operate.metrics.exposition import Counted
from server.operate.nodes import NodeState
from server.page.expert_load import expert_load
from server.page.node_view import node_view
from server.page.request_totals import RequestTotals
from server.page.terms import terms_view


def live_state(counted: Counted, report: HealthReport, totals: RequestTotals) -> dict[str, Any]:
    """Everything but the timeline and the placement. totals: of all API servers. health: the
    report's state; problem: why new requests aren't computed now, None: they are; lacking: what
    isn't there, though they are. waits_seconds: for how long requests wait at most for what was
    lost. events: [seconds since 1970, text]."""
    board, engine = counted.board, counted.engine
    attention, experts = board.of_role(Role.ATTENTION), board.of_role(Role.EXPERT)
    return {
        "model": counted.model,
        "version": __version__,
        "health": report.state,
        "problem": None if report.takes_requests else report.reason,
        "lacking": report.reason if report.takes_requests else None,
        "away_seconds": None if report.seconds is None else round(report.seconds, 1),
        "waits_seconds": engine.recovery.timeout,
        "epoch": engine.attendance.epoch,
        "running": _total(attention, "running"),
        "waiting": _total(attention, "waiting"),
        "in_flight": totals.in_flight,
        "kv_usage": sum(map(kv_usage, attention)) / len(attention) if attention else 0.0,
        "prompt_tokens": totals.prompt_tokens,
        "generation_tokens": totals.generation_tokens,
        "first_token": totals.first_token,
        "between_tokens": totals.between_tokens,
        "nodes": [node_view(node, counted) for node in (*attention, *experts)],
        "expert_load": expert_load(experts, counted.experts),
        "terms": terms_view(counted),
        "events": board.chronicle.events,
    }


def _total(nodes: Iterable[NodeState], counter: str) -> int:
    return sum(node.counters.get(counter, 0) for node in nodes)
