"""DBRX: layer norms, one clipped projection for attention, experts in flat tensors."""

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.names import ExpertLayout, ExpertStorage, TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    NormKind,
    NormSpec,
    RopeSpec,
    RouterSpec,
)

_BLOCK = "transformer.blocks.{layer}"
_EXPERTS = f"{_BLOCK}.ffn.experts.mlp"

NAMES = TensorNames(
    embedding="transformer.wte.weight",
    final_norm="transformer.norm_f.weight",
    attention_norm=f"{_BLOCK}.norm_attn_norm.norm_1.weight",
    qkv=(f"{_BLOCK}.norm_attn_norm.attn.Wqkv",),
    out=f"{_BLOCK}.norm_attn_norm.attn.out_proj",
    ffn_norm=f"{_BLOCK}.norm_attn_norm.norm_2.weight",
    router=f"{_BLOCK}.ffn.router.layer.weight",
    experts=ExpertLayout(ExpertStorage.FLAT),
    expert_gate_up=(f"{_EXPERTS}.w1", f"{_EXPERTS}.v1"),
    expert_down=f"{_EXPERTS}.w2",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a DbrxForCausalLM folder."""
    common.refuse_unsupported(config)
    layer = LayerSpec(_attention(config), _moe(config))
    return ModelSpec(
        architecture="DbrxForCausalLM",
        hidden_size=config.positive("d_model"),
        vocab_size=config.positive("vocab_size"),
        layers=(layer,) * config.positive("n_layers"),
        norm=NormSpec(1e-5, NormKind.LAYER),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        max_position=config.positive("max_seq_len"),
        dtype=config.dtype(),
        eos_token_ids=common.eos_token_ids(config),
        names=NAMES,
    )


def _part(config: Config, key: str) -> Config:
    """The settings under this key; what goes wrong with them names the file."""
    return Config(config.path, config.mapping(key))


def _attention(config: Config) -> AttentionSpec:
    own, heads = _part(config, "attn_config"), config.positive("n_heads")
    hidden = config.positive("d_model")
    if hidden % heads:
        raise config.fail("d_model", f"which {heads} attention heads cannot share evenly")
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=own.positive("kv_n_heads", default=1),
        head_dim=hidden // heads,
        rope=_rope(config, own),
        clip_qkv=own.optional_number("clip_qkv"),
    )


def _rope(config: Config, attention: Config) -> RopeSpec:
    """theta is in attn_config; transformers 5 writes another beside it, which must be the same."""
    length = {"max_position_embeddings": config.positive("max_seq_len")}
    theta = attention.number("rope_theta", 10_000.0)
    rope = common.read_rope(Config(config.path, {**config.values, **length}), theta)
    if attention.values.get("rope_theta") is not None and rope.theta != theta:
        raise config.fail("attn_config", f"but the rope_theta beside it is {rope.theta}")
    return rope


def _moe(config: Config) -> MoESpec:
    own = _part(config, "ffn_config")
    activation = own.mapping("ffn_act_fn").get("name", "silu")
    if activation != "silu":
        raise config.fail("ffn_config", f"but ffn_act_fn {activation!r:.80} is not supported")
    norm = own.values.get("moe_normalize_expert_weights", 1.0)
    if norm not in (None, 1):
        raise config.fail(
            "ffn_config", "but moe_normalize_expert_weights must be 1 or null: the sum, or nothing"
        )
    return MoESpec(
        router=RouterSpec(
            num_experts=own.positive("moe_num_experts", default=4),
            top_k=own.positive("moe_top_k", default=1),
            normalise=norm is not None,
            rounded=True,
        ),
        expert=ExpertSpec(own.positive("ffn_hidden_size", default=3584)),
    )


FAMILY = Family("DBRX", "DBRX Base, Instruct", ("DbrxForCausalLM",), read_spec)
