"""Llama 4: layers that see their own chunk, and layers that see all but know no positions; one
expert a token, weighted on its input, beside a shared one."""

from dataclasses import replace

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.names import ExpertLayout, ExpertStorage, TensorNames
from megainfer.models.quantization import read_quantization
from megainfer.models.spec import (
    AttentionSpec,
    DenseSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    QkNorm,
    QueryTemperature,
    RouterScore,
    RouterSpec,
    SharedExpertSpec,
)

ARCHITECTURES = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")
CHUNKED = "chunked_attention"
_FFN = "model.layers.{layer}.feed_forward"

NAMES = TensorNames(
    router=f"{_FFN}.router.weight",
    experts=ExpertLayout(ExpertStorage.STACKED, transposed=True),
    expert_gate_up=(f"{_FFN}.experts.gate_up_proj",),
    expert_down=f"{_FFN}.experts.down_proj",
    shared_gate_up=(
        f"{_FFN}.shared_expert.gate_proj.weight",
        f"{_FFN}.shared_expert.up_proj.weight",
    ),
    shared_down=f"{_FFN}.shared_expert.down_proj.weight",
    dense_gate_up=(f"{_FFN}.gate_proj.weight", f"{_FFN}.up_proj.weight"),
    dense_down=f"{_FFN}.down_proj.weight",
)

# compressed-tensors quantises matrices, so that it takes the experts apart first.
NAMES_APART = replace(
    NAMES,
    experts=ExpertLayout(),
    expert_gate_up=(
        f"{_FFN}.experts.{{expert}}.gate_proj.weight",
        f"{_FFN}.experts.{{expert}}.up_proj.weight",
    ),
    expert_down=f"{_FFN}.experts.{{expert}}.down_proj.weight",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Llama4ForCausalLM folder, or of the language model of a multimodal one."""
    names = _names(config)
    if config.values.get("text_config") is None:
        return replace(_read_text(config), names=names)
    names = names.under("language_model.model", "language_model.lm_head.weight")
    return replace(_read_text(common.text_part(config)), names=names)


def _names(config: Config) -> TensorNames:
    quantization = read_quantization(config)
    apart = quantization is not None and quantization.method == "compressed-tensors"
    return NAMES_APART if apart else NAMES


def _read_text(config: Config) -> ModelSpec:
    common.refuse_unsupported(config)
    moe, dense = _moe(config), DenseSpec(config.positive("intermediate_size_mlp"))
    sparse, rotated = _sparse_layers(config), _rotated_layers(config)
    kinds = common.layer_kinds(
        config, (common.FULL, CHUNKED), [CHUNKED if turned else common.FULL for turned in rotated]
    )
    layers = tuple(
        LayerSpec(_attention(config, kind, turned), moe if layer in sparse else dense)
        for layer, (kind, turned) in enumerate(zip(kinds, rotated, strict=True))
    )
    return common.model_spec(config, ARCHITECTURES[0], layers, NAMES, default_eps=1e-5)


def _sparse_layers(config: Config) -> tuple[int, ...]:
    if config.values.get("moe_layers") is not None:
        return config.integers("moe_layers")
    step = config.positive("interleave_moe_layer_step", default=1)
    return tuple(range(step - 1, config.positive("num_hidden_layers"), step))


def _rotated_layers(config: Config) -> list[bool]:
    """no_rope_layers has 1 where positions enter, and 0 where they don't."""
    count, flags = config.positive("num_hidden_layers"), config.integers("no_rope_layers")
    if flags and len(flags) != count:
        raise config.fail("no_rope_layers", f"but must say it of {count} layers")
    every = config.positive("no_rope_layer_interval", default=4)
    return [bool(flag) for flag in flags] or [(layer + 1) % every != 0 for layer in range(count)]


def _attention(config: Config, kind: str, rotated: bool) -> AttentionSpec:
    heads = config.positive("num_attention_heads")
    bias = config.flag("attention_bias", False)
    form = common.RopeForm(500_000.0, interleaved=True)
    chunk = config.positive("attention_chunk_size", default=8192)
    sees_all = kind == common.FULL or chunk >= config.positive("max_position_embeddings")
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.positive("num_key_value_heads", default=heads),
        head_dim=config.positive("head_dim", default=128),
        rope=common.read_rope(config, form=form) if rotated else None,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QkNorm.UNIT if rotated and config.flag("use_qk_norm", True) else QkNorm.NONE,
        norm_after_rope=True,
        chunk=None if sees_all else chunk,
        temperature=None if rotated else _temperature(config),
    )


def _temperature(config: Config) -> QueryTemperature | None:
    # Early checkpoints have a number where later ones have true.
    if not config.values.get("attn_temperature_tuning", True):
        return None
    return QueryTemperature(config.number("floor_scale", 8192.0), config.number("attn_scale", 0.1))


def _moe(config: Config) -> MoESpec:
    intermediate = config.positive("intermediate_size")
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_local_experts"),
            top_k=config.positive("num_experts_per_tok", default=1),
            normalise=False,
            rounded=True,
            score=RouterScore.SIGMOID,
        ),
        expert=ExpertSpec(intermediate, weight_on_input=True),
        shared=SharedExpertSpec(intermediate, gated=False),
    )


FAMILY = Family("Llama 4", "Llama 4 Scout, Maverick", ARCHITECTURES, read_spec)
