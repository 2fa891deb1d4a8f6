"""Which tensors on disk make up which weight, with the shapes that they must have.

Pure: no torch. Each function returns the pieces of one weight, which the loader concatenates along
the first axis; `attention_sources` and `expert_sources` list all that a role loads.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from megainfer.models.sources.attention import AttentionSources
from megainfer.models.sources.delta_net import DeltaNetSources
from megainfer.models.sources.experts import ExpertSources
from megainfer.models.sources.ffn import FfnSources
from megainfer.models.sources.indexer import IndexerSources
from megainfer.models.sources.latent import LatentSources
from megainfer.models.sources.model import ModelSources
from megainfer.models.spec import DeltaNetSpec, MlaSpec, ModelSpec
from megainfer.models.stored import Pieces, Source
from megainfer.topology import WHOLE, Shard

__all__ = [
    "AttentionSources",
    "DeltaNetSources",
    "ExpertSources",
    "FfnSources",
    "IndexerSources",
    "LatentSources",
    "ModelSources",
    "Pieces",
    "Source",
    "all_sources",
    "attention_sources",
    "attention_weight_bytes",
    "expert_sources",
    "layer_attention",
    "sparse_attention_weights",
]


def attention_sources(spec: ModelSpec, shard: Shard = WHOLE) -> list[Source]:
    """All that an attention node loads, or a rank of it, each tensor once."""
    sources = [*ModelSources(spec, shard).all()]
    for layer in range(len(spec.layers)):
        sources += layer_attention(spec, layer, shard).all()
        sources += FfnSources(spec, layer, shard).attention_side()
    return sources


def layer_attention(
    spec: ModelSpec, layer: int, shard: Shard = WHOLE
) -> AttentionSources | LatentSources | DeltaNetSources:
    """The weights of this layer's attention, or a rank's part of them, whichever kind it is."""
    if isinstance(spec.layers[layer].attention, MlaSpec):
        return LatentSources(spec, layer, shard)
    if isinstance(spec.layers[layer].attention, DeltaNetSpec):
        return DeltaNetSources(spec, layer, shard)
    return AttentionSources(spec, layer, shard)


def attention_weight_bytes(
    spec: ModelSpec, dtype_bytes: int, shards: Sequence[Shard] = (WHOLE,)
) -> int:
    """Bytes of all that these ranks of an attention node load together: everything but the routed
    experts."""
    sources = (source for shard in shards for source in attention_sources(spec, shard))
    return sum(prod(source.shape) for source in sources) * dtype_bytes


def sparse_attention_weights(spec: ModelSpec) -> int:
    """How many weights of `attention_sources` are of attention with an indexer."""
    layers = [layer_attention(spec, layer) for layer in range(len(spec.layers))]
    sparse = [one for one in layers if isinstance(one, LatentSources) and one.indexer()]
    return sum(prod(source.shape) for one in sparse for source in one.all())


def expert_sources(
    spec: ModelSpec, experts: Mapping[int, Iterable[int]], shard: Shard = WHOLE
) -> list[Source]:
    """All that an expert node loads, or a rank of it; experts: their global ids, by layer."""
    sources = list[Source]()
    for layer in spec.moe_layers:
        ffn = FfnSources(spec, layer)
        for expert in experts[layer]:
            sources += ffn.expert(expert, shard).all()
    return sources


def all_sources(spec: ModelSpec) -> list[Source]:
    """All that any node loads."""
    experts = dict.fromkeys(spec.moe_layers, range(spec.num_experts))
    return [*attention_sources(spec), *expert_sources(spec, experts)]
