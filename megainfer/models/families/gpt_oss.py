"""gpt-oss: attention sinks, every second layer with a window, biases everywhere, clamped swiglu."""

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.names import ExpertLayout, ExpertStorage, TensorNames
from megainfer.models.spec import (
    ActivationSpec,
    AttentionSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    RouterScore,
    RouterSpec,
)

ARCHITECTURE = "GptOssForCausalLM"
_MLP = "model.layers.{layer}.mlp"

NAMES = TensorNames(
    router=f"{_MLP}.router.weight",
    experts=ExpertLayout(ExpertStorage.STACKED, transposed=True, interleaved=True),
    expert_gate_up=(f"{_MLP}.experts.gate_up_proj",),
    expert_down=f"{_MLP}.experts.down_proj",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a GptOssForCausalLM folder."""
    common.refuse_unsupported(config)
    if not (config.mapping("rope_scaling") or config.mapping("rope_parameters")):
        raise config.fail("rope_scaling", "but this family's context is always stretched")
    count, moe = config.positive("num_hidden_layers"), _moe(config)
    default = [common.FULL if layer % 2 else common.SLIDING for layer in range(count)]
    kinds = common.layer_kinds(config, (common.FULL, common.SLIDING), default)
    layers = tuple(LayerSpec(_attention(config, kind), moe) for kind in kinds)
    return common.model_spec(config, ARCHITECTURE, layers, NAMES, default_eps=1e-5)


def _attention(config: Config, kind: str) -> AttentionSpec:
    bias = config.flag("attention_bias", True)
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=config.positive("head_dim", default=64),
        rope=common.read_rope(config, default_theta=150_000.0),
        qkv_bias=bias,
        out_bias=bias,
        sinks=True,
        window=common.sliding_window(config, 128) if kind == common.SLIDING else None,
    )


def _moe(config: Config) -> MoESpec:
    activation = ActivationSpec(
        limit=config.number("swiglu_limit", 7.0),
        alpha=config.number("swiglu_alpha", 1.702),
        up_offset=1.0,
    )
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_local_experts", "num_experts"),
            top_k=config.positive("num_experts_per_tok", "experts_per_token"),
            normalise=False,
            rounded=True,
            score=RouterScore.LOGIT,
            bias=True,
        ),
        expert=ExpertSpec(config.positive("intermediate_size"), activation, bias=True),
    )


FAMILY = Family("gpt-oss", "gpt-oss-20b, gpt-oss-120b", (ARCHITECTURE,), read_spec)
