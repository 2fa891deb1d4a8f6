"""What expert nodes say of each expert's tokens, as the live view is told."""

from collections.abc import Iterator, Sequence
from typing import Any

from server.operate.metrics.experts import ExpertMap
from server.operate.nodes import NodeState


def expert_load(nodes: Sequence[NodeState], where: ExpertMap) -> dict[str, Any]:
    """layers: their numbers. experts: global ids, node by node. tokens: [layer][expert], of all
    replicas. homes: the number of each expert's node in the first layer, of the first where it has
    several. shared: by layer, of experts that several nodes have served, each one's part of the
    tokens as [expert, node, tokens]."""
    homes: dict[int, int] = {}
    for state in nodes:
        for expert in held_by(state, where)[0]:
            homes.setdefault(expert, state.index)
    for state in nodes:  # what is on its way may be in nobody's word of a moment
        for layer in state.counters.get("expert_tokens", []):
            for expert in layer:
                homes.setdefault(expert, state.index)
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
        "shared": [list(_shared(nodes, position)) for position in range(len(where.layers))],
    }


def held_by(node: NodeState, where: ExpertMap) -> Sequence[Sequence[int]]:
    """By layer, what an expert node holds, as it says or as was planned."""
    planned = where.experts[node.index] if node.index < len(where.experts) else [()]
    held: Sequence[Sequence[int]] = node.counters.get("experts_held", planned)
    return held


def _shared(nodes: Sequence[NodeState], position: int) -> Iterator[tuple[int, int, int]]:
    first: dict[int, tuple[int, int]] = {}
    several: dict[int, list[tuple[int, int]]] = {}
    for state in nodes:
        said = state.counters.get("expert_tokens", [])
        for expert, count in said[position].items() if position < len(said) else ():
            if not count:  # a spare, mostly
                continue
            if expert in first:
                several.setdefault(expert, [first[expert]]).append((state.index, count))
            else:
                first[expert] = (state.index, count)
    for expert, own in sorted(several.items()):
        yield from ((expert, node, count) for node, count in own)
