"""What nodes on GPUs tell of what they have recorded, and of their memory."""

from megainfer.messages.from_child import Stats
from megainfer.messages.message import Role
from server.operate.metrics.experts import ExpertMap
from server.operate.metrics.nodes import node_families
from server.operate.nodes import NodeBoard, NodeState

TOLD = {
    "graphs": 6,
    "graph_bytes": 4096,
    "graph_replays": 20,
    "eager_stages": 3,
    "device_bytes_held": 9000,
    "device_bytes_used": 8000,
    "device_late_allocations": 1,
    "device_spans_missed": 2,
}


def test_those_on_gpus_tell_and_others_do_not() -> None:
    board = NodeBoard([NodeState(Role.ATTENTION, 0), NodeState(Role.EXPERT, 0)])
    board.hear(Stats(None, {"attention node 0": {"busy_seconds": 1.0}, "expert node 0": TOLD}))
    families = node_families("m", board, ExpertMap((), ()))
    samples = [sample for family in families for sample in family.samples]
    for name, value in TOLD.items():
        ending = name if name.startswith(("graphs", "graph_b", "device_b")) else f"{name}_total"
        found = [s for s in samples if s.name == f"megainfer:{ending}"]
        assert [(s.labels["role"], s.labels["node"], s.value) for s in found] == [
            ("expert", "0", value)
        ]


def test_a_gpus_seconds_stand_beside_those_of_its_host() -> None:
    told = {"expert_seconds": 5.0, "host_expert_seconds": 2.0, "host_reply_seconds": 0.5}
    board = NodeBoard([NodeState(Role.ATTENTION, 0), NodeState(Role.EXPERT, 0)])
    board.hear(Stats(None, {"attention node 0": {"attention_seconds": 3.0}, "expert node 0": told}))
    families = node_families("m", board, ExpertMap((), ()))
    found = {
        (sample.name, sample.labels["node"], sample.labels["stage"]): sample.value
        for family in families
        for sample in family.samples
        if "stage_seconds" in sample.name and sample.value
    }
    assert found == {
        ("megainfer:node_stage_seconds_total", "0", "attention"): 3.0,
        ("megainfer:node_stage_seconds_total", "0", "expert"): 5.0,
        ("megainfer:node_host_stage_seconds_total", "0", "expert"): 2.0,
        ("megainfer:node_host_stage_seconds_total", "0", "reply"): 0.5,
    }
