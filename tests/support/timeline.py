"""When every stage of every micro-batch begins and ends, for any m."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

StageKind = Literal["attention", "dispatch", "expert", "combine"]


@dataclass(frozen=True)
class Stage:
    """What one micro-batch does in one layer from `start` to `end`, in seconds."""

    micro_batch: int
    layer: int
    kind: StageKind
    start: float
    end: float


def predicted_timeline(
    t_a: float, t_e: float, t_c: float, m: int, layers: int
) -> tuple[Stage, ...]:
    """One step of m micro-batches over all layers, one attention and one expert node.

    Holds for any m, also where the closed formulas don't. `dispatch` and `combine` are the two
    transfers. The stages come by layer, then by micro-batch, then by time.
    """
    return tuple(_timeline(t_a, t_e, t_c, m, layers))


def _timeline(t_a: float, t_e: float, t_c: float, m: int, layers: int) -> Iterator[Stage]:
    attention_free = expert_free = 0.0
    replied = [0.0] * m
    # Equal costs and first come, first served on both sides: the micro-batches never overtake.
    for layer in range(layers):
        for mb in range(m):
            start = max(attention_free, replied[mb])
            attention_free = start + t_a
            arrived = attention_free + t_c
            served = max(expert_free, arrived)
            expert_free = served + t_e
            replied[mb] = expert_free + t_c
            yield Stage(mb, layer, "attention", start, attention_free)
            yield Stage(mb, layer, "dispatch", attention_free, arrived)
            yield Stage(mb, layer, "expert", served, expert_free)
            yield Stage(mb, layer, "combine", expert_free, replied[mb])
