"""Hunyuan: queries and keys normalised after the rotation, one shared expert, softmax router."""

from dataclasses import replace

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.names import TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    QkNorm,
    RouterSpec,
    SharedExpertSpec,
)

_LAYER = "model.layers.{layer}"

NAMES = TensorNames(
    q_norm=f"{_LAYER}.self_attn.query_layernorm.weight",
    k_norm=f"{_LAYER}.self_attn.key_layernorm.weight",
    router=f"{_LAYER}.mlp.gate.wg.weight",
    shared_gate_up=(
        f"{_LAYER}.mlp.shared_mlp.gate_proj.weight",
        f"{_LAYER}.mlp.shared_mlp.up_proj.weight",
    ),
    shared_down=f"{_LAYER}.mlp.shared_mlp.down_proj.weight",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a HunYuanMoEV1ForCausalLM folder."""
    common.refuse_unsupported(config)
    if config.flag("use_cla", False):
        raise config.fail("use_cla", "but keys and values shared by layers are not supported")
    if not config.flag("use_qk_norm", True):
        raise config.fail("use_qk_norm", "but this family normalises queries and keys")
    layer = LayerSpec(_attention(config), _moe(config))
    layers = (layer,) * config.positive("num_hidden_layers")
    return common.model_spec(config, "HunYuanMoEV1ForCausalLM", layers, NAMES, default_eps=1e-5)


def _attention(config: Config) -> AttentionSpec:
    return replace(
        common.grouped_heads(config),
        qk_norm=QkNorm.HEAD,
        norm_after_rope=True,
    )


def _moe(config: Config) -> MoESpec:
    intermediate = config.positive("intermediate_size")
    if _alike(config, "moe_intermediate_size", intermediate) != intermediate:
        raise config.fail(
            "moe_intermediate_size", f"but intermediate_size, {intermediate}, is all experts' size"
        )
    if _alike(config, "num_shared_expert", 1) != 1:
        raise config.fail("num_shared_expert", "but each layer must have one shared expert")
    return MoESpec(
        router=RouterSpec(
            num_experts=_alike(config, "num_experts"),
            top_k=_alike(config, "moe_topk", 1),
            normalise=True,
            rounded=False,
            wide=True,
        ),
        expert=ExpertSpec(intermediate),
        shared=SharedExpertSpec(intermediate, gated=False),
    )


def _alike(config: Config, key: str, default: int | None = None) -> int:
    """A number that is given once, or for each layer and then the same for all."""
    if not isinstance(config.values.get(key), list):
        return config.positive(key, default=default)
    values = set(config.integers(key))
    if len(values) != 1:
        raise config.fail(key, "but all layers must agree")
    return values.pop()


FAMILY = Family("Hunyuan", "Hunyuan-A13B", ("HunYuanMoEV1ForCausalLM",), read_spec)
