"""MiniMax-M2: q and k normalised over all heads, then partly rotated; sigmoid router with a bias
that only chooses."""

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
    RouterScore,
    RouterSpec,
)

ARCHITECTURE = "MiniMaxM2ForCausalLM"
_MOE = "model.layers.{layer}.block_sparse_moe"

NAMES = TensorNames(
    router=f"{_MOE}.gate.weight",
    selection_bias=f"{_MOE}.e_score_correction_bias",
    expert_gate_up=(f"{_MOE}.experts.{{expert}}.w1.weight", f"{_MOE}.experts.{{expert}}.w3.weight"),
    expert_down=f"{_MOE}.experts.{{expert}}.w2.weight",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a MiniMaxM2ForCausalLM folder."""
    common.refuse_unsupported(config)
    config.expect("scoring_func", "sigmoid")
    config.expect("qk_norm_type", "per_layer")
    if config.whole("shared_intermediate_size", 0):
        raise config.fail("shared_intermediate_size", "but a shared expert is not supported")
    if any(kind != 1 for kind in config.integers("attn_type_list")):
        raise config.fail("attn_type_list", "but linear attention is not supported; supported: 1")
    layer = LayerSpec(_attention(config), _moe(config))
    layers = (layer,) * config.positive("num_hidden_layers")
    return common.model_spec(config, ARCHITECTURE, layers, NAMES, default_eps=1e-6)


def _attention(config: Config) -> AttentionSpec:
    head_dim = common.head_dim(config)
    # Released checkpoints say how many channels are rotated, later ones which share.
    rotated = config.positive("rotary_dim", default=head_dim)
    form = common.RopeForm(5_000_000.0, head_dim, rotated / head_dim)
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=head_dim,
        rope=common.read_rope(config, form=form),
        qk_norm=QkNorm.FULL if config.flag("use_qk_norm", True) else QkNorm.NONE,
    )


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_local_experts"),
            top_k=config.positive("num_experts_per_tok"),
            normalise=True,
            rounded=False,
            score=RouterScore.SIGMOID,
            selection_bias=config.flag("use_routing_bias", True),
        ),
        expert=ExpertSpec(config.positive("intermediate_size")),
    )


FAMILY = Family("MiniMax-M2", "MiniMax-M2, M2.1", (ARCHITECTURE,), read_spec)
