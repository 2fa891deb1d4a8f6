"""Changes of a spec that take one axis away, in every layer at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.selection import open_backend
from megainfer.expert_node.experts import ExpertModel
from megainfer.models.spec import DenseSpec, LayerSpec, ModelSpec, MoESpec
from megainfer.topology import contiguous_placement
from tests.support.node_pair import Pair

Change = Callable[[ModelSpec], ModelSpec]


@dataclass(frozen=True)
class Mutation:
    """An axis of one variant of a family, and what takes it away."""

    family: str
    variant: str
    axis: str
    change: Change


def of_layers(change: Callable[[LayerSpec], LayerSpec]) -> Change:
    return lambda spec: replace(spec, layers=tuple(map(change, spec.layers)))


def of_moe(change: Callable[[MoESpec], MoESpec]) -> Change:
    def layer(old: LayerSpec) -> LayerSpec:
        return replace(old, ffn=change(old.ffn)) if isinstance(old.ffn, MoESpec) else old

    return of_layers(layer)


def router(**values: Any) -> Change:
    return of_moe(lambda moe: replace(moe, router=replace(moe.router, **values)))


def expert(**values: Any) -> Change:
    return of_moe(lambda moe: replace(moe, expert=replace(moe.expert, **values)))


def shared(**values: Any) -> Change:
    """Where there are shared experts."""

    def change(moe: MoESpec) -> MoESpec:
        return moe if moe.shared is None else replace(moe, shared=replace(moe.shared, **values))

    return of_moe(change)


def without_shared() -> Change:
    return of_moe(lambda moe: replace(moe, shared=None))


def dense(**values: Any) -> Change:
    def layer(old: LayerSpec) -> LayerSpec:
        return (
            replace(old, ffn=replace(old.ffn, **values)) if isinstance(old.ffn, DenseSpec) else old
        )

    return of_layers(layer)


def attention(**values: Any) -> Change:
    """Of those layers whose attention has these fields."""

    def layer(old: LayerSpec) -> LayerSpec:
        if not all(hasattr(old.attention, name) for name in values):
            return old
        return replace(old, attention=replace(old.attention, **values))

    return of_layers(layer)


def indexer(**values: Any) -> Change:
    """Of latent attention that has one."""

    def layer(old: LayerSpec) -> LayerSpec:
        own = getattr(old.attention, "indexer", None)
        if own is None:
            return old
        return replace(old, attention=replace(old.attention, indexer=replace(own, **values)))

    return of_layers(layer)


def rope(**values: Any) -> Change:
    """Of those layers that have one."""

    def layer(old: LayerSpec) -> LayerSpec:
        own = getattr(old.attention, "rope", None)
        if own is None:
            return old
        return replace(old, attention=replace(old.attention, rope=replace(own, **values)))

    return of_layers(layer)


def norm(**values: Any) -> Change:
    return lambda spec: replace(spec, norm=replace(spec.norm, **values))


def multipliers(**values: float) -> Change:
    return lambda spec: replace(spec, multipliers=replace(spec.multipliers, **values))


def model(**values: Any) -> Change:
    return lambda spec: replace(spec, **values)


def reference_pair(folder: Path, spec: ModelSpec) -> Pair:
    """The checkpoint loaded and computed as this spec says, by the reference on one node."""
    placement = contiguous_placement(spec.num_experts, 1, spec.moe_layers)
    backend = open_backend("reference")
    with WeightReader(folder) as reader:
        attention_model = AttentionModel(spec, reader, placement, backend)
        experts = ExpertModel(spec, reader, placement, 0, backend)
    return Pair(attention_model, [experts])
