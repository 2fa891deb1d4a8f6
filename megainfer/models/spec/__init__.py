"""What a model is made of, as data: the axes along which the supported families differ.

Pure: no torch. One `ModelSpec` describes one checkpoint; the attention half and the expert half
of a layer are described apart, because different processes build them. A family that needs a new
axis adds a field whose default means "absent", or a new kind beside `AttentionSpec`, `MlaSpec`
and `DeltaNetSpec` or beside `DenseSpec` and `MoESpec`.
"""

from megainfer.models.spec.attention import (
    AttentionSpec,
    MlaSpec,
    QkNorm,
    QueryTemperature,
)
from megainfer.models.spec.cache import CACHE_FORMATS, CacheFormat
from megainfer.models.spec.delta_net import DeltaNetSpec
from megainfer.models.spec.ffn import (
    SILU,
    Activation,
    ActivationSpec,
    DenseSpec,
    ExpertSpec,
    MoESpec,
    SharedExpertSpec,
)
from megainfer.models.spec.indexer import IndexerSpec
from megainfer.models.spec.model import LayerSpec, ModelSpec, Multipliers
from megainfer.models.spec.norm import NormKind, NormSpec
from megainfer.models.spec.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NtkScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)
from megainfer.models.spec.router import ExpertGroups, GroupScore, RouterScore, RouterSpec

__all__ = [
    "CACHE_FORMATS",
    "SILU",
    "Activation",
    "ActivationSpec",
    "AttentionSpec",
    "CacheFormat",
    "DeltaNetSpec",
    "DenseSpec",
    "ExpertGroups",
    "ExpertSpec",
    "GroupScore",
    "IndexerSpec",
    "LayerSpec",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "MlaSpec",
    "MoESpec",
    "ModelSpec",
    "Multipliers",
    "NormKind",
    "NormSpec",
    "NtkScaling",
    "QkNorm",
    "QueryTemperature",
    "RopeScaling",
    "RopeSpec",
    "RouterScore",
    "RouterSpec",
    "SharedExpertSpec",
    "YarnScaling",
]
