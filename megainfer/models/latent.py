"""Parts of config.json that families with multi-head latent attention write alike."""

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.names import TensorNames
from megainfer.models.spec import (
    DenseSpec,
    ExpertGroups,
    ExpertSpec,
    GroupScore,
    IndexerSpec,
    LayerSpec,
    MlaSpec,
    MoESpec,
    RopeSpec,
    RouterScore,
    RouterSpec,
    SharedExpertSpec,
    YarnScaling,
)

NAMES = TensorNames(
    shared_gate_up=(
        "model.layers.{layer}.mlp.shared_experts.gate_proj.weight",
        "model.layers.{layer}.mlp.shared_experts.up_proj.weight",
    ),
    shared_down="model.layers.{layer}.mlp.shared_experts.down_proj.weight",
)


def read_attention(config: Config) -> MlaSpec:
    """Raises ModelError for fewer key heads than heads: latent attention has no grouped heads."""
    heads = config.positive("num_attention_heads")
    if config.positive("num_key_value_heads", default=heads) != heads:
        raise config.fail("num_key_value_heads", f"but must be the {heads} attention heads")
    nope, rotated = config.positive("qk_nope_head_dim"), config.positive("qk_rope_head_dim")
    q_lora = config.values.get("q_lora_rank")
    rope = common.read_rope(config)
    return MlaSpec(
        num_heads=heads,
        kv_lora_rank=config.positive("kv_lora_rank"),
        q_lora_rank=None if q_lora is None else config.positive("q_lora_rank"),
        nope_dim=nope,
        rope_dim=rotated,
        v_dim=config.positive("v_head_dim"),
        rope=rope,
        scale=float((nope + rotated) ** -0.5) * _yarn_scale(config, rope),
        bias=config.flag("attention_bias", False),
        interleaved=config.flag("rope_interleave", True),
    )


def read_indexer(config: Config, interleaved: bool) -> IndexerSpec:
    """DeepSeek-V3.2's indexer. interleaved: how its rotated channels lie on disk."""
    if config.flag("indexer_rope_interleave", interleaved) != interleaved:
        raise config.fail("indexer_rope_interleave", f"but must be {interleaved} in this family")
    return IndexerSpec(
        num_heads=config.positive("index_n_heads"),
        head_dim=config.positive("index_head_dim"),
        top_k=config.positive("index_topk"),
        interleaved=interleaved,
    )


def _yarn_scale(config: Config, rope: RopeSpec) -> float:
    """What scores are multiplied with where YaRN stretches the context, beside 1 / sqrt(d).

    DeepSeek's mscale_all_dim, squared: once for queries, once for keys.
    """
    if not isinstance(rope.scaling, YarnScaling):
        return 1.0
    key = "rope_scaling" if config.mapping("rope_scaling") else "rope_parameters"
    parameters = Config(config.path, config.mapping(key))
    if not parameters.values.get("mscale_all_dim"):
        return 1.0
    weight = parameters.number("mscale_all_dim", 1.0)
    return common.yarn_mscale(rope.scaling.factor, weight) ** 2


def sigmoid_moe(config: Config) -> MoESpec:
    """DeepSeek-V3's: a sigmoid for each expert, and a bias that enters the choice alone."""
    config.expect("scoring_func", "sigmoid")
    config.expect("topk_method", "noaux_tc")
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("n_routed_experts", "num_experts"),
            top_k=config.positive("num_experts_per_tok"),
            normalise=config.flag("norm_topk_prob", True),
            rounded=False,
            score=RouterScore.SIGMOID,
            selection_bias=True,
            groups=groups(config, GroupScore.TOP2_SUM),
            epsilon=1e-20,
            scale=config.number("routed_scaling_factor", 1.0),
            wide=True,
        ),
        expert=ExpertSpec(config.positive("moe_intermediate_size")),
        shared=shared(config),
    )


def sparse_by_type(config: Config, dense_first: int) -> list[bool]:
    """For each layer, whether it has experts: by mlp_layer_types, else after so many without."""
    count = config.positive("num_hidden_layers")
    kinds = config.values.get("mlp_layer_types")
    if kinds is None:
        return [layer >= dense_first for layer in range(count)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != count
        or any(kind not in ("dense", "sparse") for kind in kinds)
    ):
        raise config.fail("mlp_layer_types", f"but must be a list of {count} dense or sparse")
    return [kind == "sparse" for kind in kinds]


def layers(config: Config, attention: MlaSpec, moe: MoESpec) -> tuple[LayerSpec, ...]:
    """All layers: dense before first_k_dense_replace, then every moe_layer_freq-th with experts."""
    first = config.whole("first_k_dense_replace", 0)
    every = config.positive("moe_layer_freq", default=1)
    dense = DenseSpec(config.positive("intermediate_size"))
    return tuple(
        LayerSpec(attention, moe if layer >= first and layer % every == 0 else dense)
        for layer in range(config.positive("num_hidden_layers"))
    )


def groups(config: Config, score: GroupScore) -> ExpertGroups | None:
    """Groups that some experts are left out by; None where all groups are kept."""
    count = config.positive("n_group", default=1)
    kept = config.positive("topk_group", default=count)
    return None if kept == count else ExpertGroups(count, kept, score)


def shared(config: Config) -> SharedExpertSpec | None:
    """The shared experts, which lie on disk as one."""
    count = config.whole("n_shared_experts", 0)
    if not count:
        return None
    return SharedExpertSpec(count * config.positive("moe_intermediate_size"), gated=False)
