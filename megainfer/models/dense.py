"""What dense models have alike: the network of a layer is its only expert, and no router asks."""

from collections.abc import Sequence

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.names import TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    RouterScore,
    RouterSpec,
)

_MLP = "model.layers.{layer}.mlp"

NAMES = TensorNames(
    expert_gate_up=(f"{_MLP}.gate_proj.weight", f"{_MLP}.up_proj.weight"),
    expert_down=f"{_MLP}.down_proj.weight",
)


def read_spec(
    config: Config, architecture: str, attentions: Sequence[AttentionSpec], bias: bool = False
) -> ModelSpec:
    """attentions: of each layer. bias: of the networks. One expert is for one expert node."""
    router = RouterSpec(1, 1, normalise=False, rounded=False, score=RouterScore.CONSTANT)
    network = MoESpec(router, ExpertSpec(config.positive("intermediate_size"), bias=bias))
    layers = tuple(LayerSpec(attention, network) for attention in attentions)
    return common.model_spec(config, architecture, layers, NAMES, default_eps=1e-6)


def windows(config: Config) -> list[int | None]:
    """Of each layer, as Qwen's dense models say it: where layer_types is absent, those from
    max_window_layers on, if use_sliding_window is set."""
    count = config.positive("num_hidden_layers")
    windowed = config.flag("use_sliding_window", False)
    first = config.whole("max_window_layers", 28) if windowed else count
    default = [common.SLIDING if layer >= first else common.FULL for layer in range(count)]
    kinds = common.layer_kinds(config, (common.FULL, common.SLIDING), default)
    window = common.sliding_window(config, 4096) if windowed else None
    return [window if kind == common.SLIDING else None for kind in kinds]
