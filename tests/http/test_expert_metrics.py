"""What is told of experts' load and replicas, from nodes' counters."""

from prometheus_client.core import Metric

from megainfer.messages.from_child import Stats
from megainfer.messages.message import Role
from server.operate.metrics.experts import ExpertMap, expert_families
from server.operate.nodes import NodeBoard, NodeState

WHERE = ExpertMap((1, 4), (((0, 1), (0, 1)), ((2, 3), (2, 3))))


def values(nodes: list[NodeState], family: str) -> dict[tuple[str, ...], float]:
    """By all labels but the model's."""
    found: dict[str, Metric] = {f.name: f for f in expert_families("m", nodes, WHERE)}
    rows = found[f"megainfer:{family}"].samples
    return {tuple(v for k, v in row.labels.items() if k != "model_name"): row.value for row in rows}


def test_shares_of_nodes_are_of_late_and_of_experts_since_the_start() -> None:
    nodes = [NodeState(Role.EXPERT, index) for index in range(2)]
    board = NodeBoard(nodes)
    assert values(nodes, "expert_imbalance") == values(nodes, "expert_replicas") == {}

    def told(first: list[dict[int, int]], second: list[dict[int, int]]) -> None:
        held = [[0, 1, 2], [0, 1]], [[2, 3, 0], [2, 3]]
        board.hear(
            Stats(
                None,
                {
                    "expert node 0": {"expert_tokens": first, "experts_held": held[0]},
                    "expert node 1": {"expert_tokens": second, "experts_held": held[1]},
                },
            )
        )

    told([{0: 100, 1: 0}, {0: 5}], [{2: 0, 3: 0, 0: 20}, {2: 5}])
    assert values(nodes, "expert_imbalance") == {}, "nothing was served since"
    told([{0: 130, 1: 10}, {0: 5}], [{2: 8, 3: 2, 0: 20}, {2: 5}])
    assert values(nodes, "expert_imbalance") == {("1",): 40 * 2 / 50}
    assert values(nodes, "expert_load_imbalance") == {("1",): 150 * 4 / 170, ("4",): 1.0}
    assert values(nodes, "expert_replicas") == {("1",): 2.0, ("4",): 0.0}
    assert values(nodes, "expert_tokens")["1", "0"] == 20.0
