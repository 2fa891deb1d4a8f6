"""Which tensors on disk make up which weight, with the shapes that they must have.

Pure: no torch. Each function returns the pieces of one weight, which the loader concatenates along
the first axis; `attention_sources` and `expert_sources` list all that a role loads.
"""

from collections.abc import Iterable
from math import prod

from megainfer.models.source import Pieces, Source
from megainfer.models.sources.attention import AttentionSources
from megainfer.models.sources.delta_net import DeltaNetSources
from megainfer.models.sources.ffn import FfnSources
from megainfer.models.sources.model import ModelSources
from megainfer.models.spec import DeltaNetSpec, ModelSpec

__all__ = [
    "AttentionSources",
    "DeltaNetSources",
    "FfnSources",
    "ModelSources",
    "Pieces",
    "Source",
    "attention_sources",
    "attention_weight_bytes",
    "expert_sources",
]


def attention_sources(spec: ModelSpec) -> list[Source]:
    """All that an attention node loads, each tensor once."""
    sources = [*ModelSources(spec).all()]
    for layer in range(len(spec.layers)):
        sources += _attention_half(spec, layer)
        sources += FfnSources(spec, layer).attention_side()
    return sources


def _attention_half(spec: ModelSpec, layer: int) -> Pieces:
    if isinstance(spec.layers[layer].attention, DeltaNetSpec):
        return DeltaNetSources(spec, layer).all()
    return AttentionSources(spec, layer).all()


def attention_weight_bytes(spec: ModelSpec, dtype_bytes: int) -> int:
    """Bytes of all that an attention node loads: everything but the routed experts."""
    return sum(prod(source.shape) for source in attention_sources(spec)) * dtype_bytes


def expert_sources(spec: ModelSpec, experts: Iterable[int]) -> list[Source]:
    """All that an expert node with these global expert ids loads."""
    ids, sources = tuple(experts), list[Source]()
    for layer in spec.moe_layers:
        ffn = FfnSources(spec, layer)
        for expert in ids:
            sources += [*ffn.expert_gate_up(expert), *ffn.expert_down(expert)]
    return sources
