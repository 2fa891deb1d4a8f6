"""What only MegaInfer has to tell: both roles' work, and the road between them."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import Metric

from megainfer.messages.message import Role
from server.operate.metrics.experts import ExpertMap, expert_families
from server.operate.metrics.families import counter, gauge
from server.operate.nodes import NodeBoard, NodeState

LABELS = ("model_name", "role", "node")
STAGES = {
    Role.ATTENTION: (
        *("schedule", "embed", "attention", "dispatch", "shared", "combine", "layers", "head"),
        "sample",
    ),
    Role.EXPERT: ("expert", "reply"),
}
M2N_COUNTERS = {
    "m2n_messages_sent": ("messages_sent", "Messages written into other nodes' slots."),
    "m2n_messages_received": ("messages_received", "Messages taken out of a node's own slots."),
    "m2n_rows_sent": ("rows_sent", "Rows (tokens) in the messages sent."),
    "m2n_rows_received": ("rows_received", "Rows (tokens) in the messages received."),
    "m2n_bytes_sent": ("bytes_sent", "Bytes of the messages sent, headers included."),
    "m2n_bytes_received": ("bytes_received", "Bytes of the messages received."),
    "m2n_messages_dropped": ("dropped", "Messages of an epoch or a step that had ended."),
    "m2n_timed_transfers": ("transfers", "Messages that found their receiver waiting."),
}

GPU_COUNTERS = {
    "graph_replays": "Stages given to a GPU in one piece, as it had recorded them.",
    "eager_stages": "Stages given to it one kernel after the other.",
    "device_late_allocations": "Times that more of a GPU's memory was taken after the start.",
    "device_spans_missed": "A GPU's spans that a trace lacks, since no event was free.",
}
GPU_GAUGES = {
    "graphs": "Stages that a GPU has recorded.",
    "graph_bytes": "Bytes of its memory that they take.",
    "device_bytes_held": "Bytes of a GPU's memory that a node has taken.",
    "device_bytes_used": "Bytes of these that it has something in.",
}
"""By the names that nodes have for them: those that compute on a GPU tell them."""


def node_families(model: str, board: NodeBoard, where: ExpertMap) -> Iterator[Metric]:
    """All families, of what the nodes said last."""
    nodes = [*board.of_role(Role.ATTENTION), *board.of_role(Role.EXPERT)]
    experts = board.of_role(Role.EXPERT)
    at = {node.name: (model, str(node.role), str(node.index)) for node in nodes}
    yield gauge(
        "node_up",
        "1 while a node goes on telling that its loop goes round, else 0.",
        LABELS,
        [(at[node.name], float(board.is_up(node))) for node in nodes],
    )
    yield gauge(
        "node_last_heard_seconds",
        "Seconds since a node last said something.",
        LABELS,
        [(at[node.name], board.silence(node)) for node in nodes],
    )
    yield from _work(model, nodes)
    yield from _pipeline(model, board, nodes)
    for name, (source, text) in M2N_COUNTERS.items():
        rows = [(at[n.name], float(n.counters.get(source, 0))) for n in nodes]
        yield counter(name, text, LABELS, rows)
    yield from _gpus(model, nodes)
    roads = [
        ((*at[n.name], road, str(expert)), 1.0)
        for n in nodes
        for road, experts_there in n.counters.get("m2n_roads", {}).items()
        for expert in experts_there
    ]
    text = "1 for each expert node that an attention node reaches, and over which road."
    yield gauge("m2n_road", text, (*LABELS, "road", "expert"), roads)
    text = "Seconds from the beginning of a send to the waiting receiver's noticing."
    transfers = [(at[n.name], n.counters.get("transfer_ns", 0) / 1e9) for n in nodes]
    yield counter("m2n_transfer_seconds", text, LABELS, transfers)
    yield from expert_families(model, experts, where)


def _gpus(model: str, nodes: Sequence[NodeState]) -> Iterator[Metric]:
    for make, told in ((counter, GPU_COUNTERS), (gauge, GPU_GAUGES)):
        for name, text in told.items():
            rows = [
                ((model, str(n.role), str(n.index)), float(n.counters[name]))
                for n in nodes
                if name in n.counters
            ]
            yield make(name, text, LABELS, rows)


def _work(model: str, nodes: Sequence[NodeState]) -> Iterator[Metric]:
    staged = [(node, stage) for node in nodes for stage in STAGES[node.role]]
    labels = (*LABELS, "stage")
    for name, suffix, text in (
        ("node_stage_seconds", "seconds", "Seconds of work by stage."),
        ("node_stage_runs", "count", "How often a stage ran."),
    ):
        rows = [
            ((model, str(n.role), str(n.index), stage), n.counters.get(f"{stage}_{suffix}", 0))
            for n, stage in staged
        ]
        yield counter(name, text, labels, rows)
    given = [
        ((model, str(n.role), str(n.index), stage), n.counters[f"host_{stage}_seconds"])
        for n, stage in staged
        if f"host_{stage}_seconds" in n.counters
    ]
    text = "Seconds in which the host gave a stage's work to its GPU, or did it itself."
    yield counter("node_host_stage_seconds", text, labels, given)
    busy = [((model, str(n.role), str(n.index)), n.counters.get("busy_seconds", 0)) for n in nodes]
    yield counter("node_busy_seconds", "Seconds of work over all stages.", LABELS, busy)


def _pipeline(model: str, board: NodeBoard, nodes: Sequence[NodeState]) -> Iterator[Metric]:
    idle = [((model, str(n.role), str(n.index)), n.idle_share()) for n in nodes]
    text = "Share of the latest second in which a node had nothing to do."
    yield gauge("node_idle_ratio", text, LABELS, idle)
    sides = [((model, str(role)), _mean_idle(board.of_role(role))) for role in STAGES]
    text = "Share of the latest second in which the nodes of a role had nothing to do, on average."
    yield gauge("role_idle_ratio", text, ("model_name", "role"), sides)
    yield gauge(
        "pipeline_bubble_ratio",
        "Idle share of the busier role in the latest second; NaN while no token is generated.",
        ("model_name",),
        [((model,), pipeline_bubble(board))],
    )


def pipeline_bubble(board: NodeBoard) -> float:
    """How far the pipeline is from full: 0 when one of the two sides always works. NaN while no
    token is generated."""
    attention = board.of_role(Role.ATTENTION)
    if not any(node.growth("generated_tokens") for node in attention):
        return float("nan")
    return min(_mean_idle(board.of_role(role)) for role in STAGES)


def _mean_idle(nodes: Sequence[NodeState]) -> float:
    return sum(node.idle_share() for node in nodes) / len(nodes) if nodes else 1.0
