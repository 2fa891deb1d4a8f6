"""What expert nodes have to tell: batches, the load of each expert, and how evenly it is shared."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric

from server.operate.metrics.families import counter, distribution_of, gauge, histogram
from server.operate.nodes import NodeState

EXPERT_COUNTERS = {
    "expert_batches": ("batches", "Batches computed, each of one layer of one micro-batch."),
    "expert_batch_sources": ("sources", "Dispatches in all batches."),
    "expert_missed_sources": ("missed", "Times that a batch went on without an expected dispatch."),
}


@dataclass(frozen=True, slots=True)
class ExpertMap:
    """Where experts are. layers: numbers of the layers with experts. experts: the global ids on
    each expert node, by layer (in the order of `layers`) and local id."""

    layers: Sequence[int]
    experts: Sequence[Sequence[Sequence[int]]]


def expert_families(model: str, nodes: Sequence[NodeState], where: ExpertMap) -> Iterator[Metric]:
    """Of expert nodes, by what they said last."""
    labels = ("model_name", "node")
    for name, (source, text) in EXPERT_COUNTERS.items():
        rows = [((model, str(n.index)), float(n.counters.get(source, 0))) for n in nodes]
        yield counter(name, text, labels, rows)
    told = [node for node in nodes if "ranks" in node.counters]
    ranks = [((model, str(node.index)), float(node.counters["ranks"])) for node in told]
    yield gauge("expert_ranks", "Processes of an expert node.", labels, ranks)
    batches = [((model, str(n.index)), distribution_of(n.counters, "batch_rows")) for n in nodes]
    known = [(at, distribution) for at, distribution in batches if distribution is not None]
    yield histogram("expert_batch_rows", "Rows (tokens) in a batch.", labels, known)
    yield counter(
        "expert_tokens",
        "Tokens that an expert served, over all layers.",
        (*labels, "expert"),
        [
            ((model, str(node.index), str(expert)), float(tokens))
            for node in nodes
            for expert, tokens in _tokens_by_expert(node)
        ],
    )
    imbalance = [((model, str(layer)), ratio) for layer, ratio in imbalances(nodes, where)]
    text = "Tokens of a layer's busiest expert, as many times the mean of its experts, since start."
    yield gauge("expert_load_imbalance", text, ("model_name", "layer"), imbalance)
    yield from _balance(model, nodes, where)


def _balance(model: str, nodes: Sequence[NodeState], where: ExpertMap) -> Iterator[Metric]:
    """How even the nodes' shares are, and what helps to make them so."""
    labels = ("model_name", "layer")
    text = "Tokens of a layer's busiest expert node, as many times the mean of the nodes, lately."
    shares = [((model, str(layer)), ratio) for layer, ratio in node_imbalances(nodes, where)]
    yield gauge("expert_imbalance", text, labels, shares)
    text = "Replicas of a layer's experts beyond one of each."
    replicas = [((model, str(layer)), float(n)) for layer, n in replicas_of(nodes, where)]
    yield gauge("expert_replicas", text, labels, replicas)


def _tokens_by_expert(node: NodeState) -> list[tuple[int, int]]:
    """(global id, tokens over all layers), ascending."""
    tokens = Counter[int]()
    for layer in node.counters.get("expert_tokens", []):
        tokens.update(layer)
    return sorted(tokens.items())


def imbalances(nodes: Sequence[NodeState], where: ExpertMap) -> list[tuple[int, float]]:
    """(layer, its busiest expert's tokens by the mean), for layers that have served any."""
    said = [n.counters["expert_tokens"] for n in nodes if "expert_tokens" in n.counters]
    found = []
    for position, layer in enumerate(where.layers):
        tokens = Counter[int]()  # of an expert over all who hold it
        for layers in said:
            tokens.update(layers[position])
        if any(tokens.values()):
            found.append((layer, max(tokens.values()) * len(tokens) / tokens.total()))
    return found


def node_imbalances(nodes: Sequence[NodeState], where: ExpertMap) -> list[tuple[int, float]]:
    """(layer, its busiest node's choices by the mean) between the last two times that nodes were
    heard, for layers that had any."""
    served = [_growth(node) for node in nodes if "expert_tokens" in node.counters]
    found = []
    for layer, own in zip(where.layers, zip(*served, strict=True), strict=False):
        if any(own):
            found.append((layer, max(own) * len(own) / sum(own)))
    return found


def _growth(node: NodeState) -> list[int]:
    """Of each layer, the choices that a node has served since it was heard before."""
    now, before = node.counters["expert_tokens"], node.before.get("expert_tokens", [])
    served = [sum(layer.values()) for layer in now]
    return [a - b for a, b in zip(served, (sum(layer.values()) for layer in before), strict=False)]


def replicas_of(nodes: Sequence[NodeState], where: ExpertMap) -> list[tuple[int, int]]:
    """(layer, how many experts are held more than once, counting each further time)."""
    said = [node.counters["experts_held"] for node in nodes if "experts_held" in node.counters]
    layers = zip(where.layers, zip(*said, strict=True), strict=False)
    return [(n, sum(map(len, held)) - len(set().union(*held))) for n, held in layers]
