"""What a family calls its tensors on disk."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum

_LAYER = "model.layers.{layer}"


class ExpertStorage(StrEnum):
    """How the experts of a layer share tensors."""

    SEPARATE = "separate"  # not at all: {expert} is in the names
    STACKED = "stacked"  # [E, ...]
    FLAT = "flat"  # [E * F, D], down's too, which is turned so


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """transposed: matrices are stored [inputs, outputs]. interleaved: in a gate-up that is one
    tensor, gate's and up's channels take turns, else up's follow all of gate's."""

    storage: ExpertStorage = ExpertStorage.SEPARATE
    transposed: bool = False
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Templates of tensor names; `{layer}` and `{expert}` are filled in.

    The defaults are what most families share. `qkv`, `out`, and each `down` and `up` of latent
    attention name projections, without the `.weight` or `.bias` at the end; where q, k and v are
    one projection, `qkv` has one name. Each `gate_up` is a pair: gate, up. `delta_fused` are what
    a DeltaNet's input goes through, interleaved by key head: each one's query, key, values and
    output gates; its rates and decays. Where they are None, `delta_split` are: queries, keys and
    values; gates; rates; decays. `kv_up_split`, where it isn't None, goes before `kv_up`: of all
    heads the keys' projections, turned ([H, rank, channels]), and the values' ([H, channels,
    rank]).
    """

    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    lm_head: str = "lm_head.weight"
    attention_norm: str = f"{_LAYER}.input_layernorm.weight"
    qkv: tuple[str, ...] = (
        f"{_LAYER}.self_attn.q_proj",
        f"{_LAYER}.self_attn.k_proj",
        f"{_LAYER}.self_attn.v_proj",
    )
    out: str = f"{_LAYER}.self_attn.o_proj"
    q_norm: str = f"{_LAYER}.self_attn.q_norm.weight"
    k_norm: str = f"{_LAYER}.self_attn.k_norm.weight"
    q_down: str = f"{_LAYER}.self_attn.q_a_proj"
    q_latent_norm: str = f"{_LAYER}.self_attn.q_a_layernorm.weight"
    q_up: str = f"{_LAYER}.self_attn.q_b_proj"
    kv_down: str = f"{_LAYER}.self_attn.kv_a_proj_with_mqa"
    kv_latent_norm: str = f"{_LAYER}.self_attn.kv_a_layernorm.weight"
    kv_up: str = f"{_LAYER}.self_attn.kv_b_proj"
    kv_up_split: tuple[str, str] | None = None
    index_q: str = f"{_LAYER}.self_attn.indexer.wq_b"
    index_k: str = f"{_LAYER}.self_attn.indexer.wk"
    index_k_norm: str = f"{_LAYER}.self_attn.indexer.k_norm"
    index_weights: str = f"{_LAYER}.self_attn.indexer.weights_proj"
    sinks: str = f"{_LAYER}.self_attn.sinks"
    ffn_norm: str = f"{_LAYER}.post_attention_layernorm.weight"
    dense_gate_up: tuple[str, ...] = (
        f"{_LAYER}.mlp.gate_proj.weight",
        f"{_LAYER}.mlp.up_proj.weight",
    )
    dense_down: str = f"{_LAYER}.mlp.down_proj.weight"
    router: str = f"{_LAYER}.mlp.gate.weight"
    selection_bias: str = f"{_LAYER}.mlp.gate.e_score_correction_bias"
    nested_selection_bias: bool = False
    hash_table: str = f"{_LAYER}.mlp.gate.tid2eid"
    experts: ExpertLayout = ExpertLayout()
    expert_gate_up: tuple[str, ...] = (
        f"{_LAYER}.mlp.experts.{{expert}}.gate_proj.weight",
        f"{_LAYER}.mlp.experts.{{expert}}.up_proj.weight",
    )
    expert_down: str = f"{_LAYER}.mlp.experts.{{expert}}.down_proj.weight"
    shared_gate_up: tuple[str, ...] = (
        f"{_LAYER}.mlp.shared_expert.gate_proj.weight",
        f"{_LAYER}.mlp.shared_expert.up_proj.weight",
    )
    shared_down: str = f"{_LAYER}.mlp.shared_expert.down_proj.weight"
    shared_gate: str = f"{_LAYER}.mlp.shared_expert_gate.weight"
    delta_fused: tuple[str, str] | None = (
        f"{_LAYER}.linear_attn.in_proj_qkvz.weight",
        f"{_LAYER}.linear_attn.in_proj_ba.weight",
    )
    delta_split: tuple[str, str, str, str] = (
        f"{_LAYER}.linear_attn.in_proj_qkv.weight",
        f"{_LAYER}.linear_attn.in_proj_z.weight",
        f"{_LAYER}.linear_attn.in_proj_b.weight",
        f"{_LAYER}.linear_attn.in_proj_a.weight",
    )
    delta_taps: str = f"{_LAYER}.linear_attn.conv1d.weight"
    delta_time_bias: str = f"{_LAYER}.linear_attn.dt_bias"
    delta_log_decay: str = f"{_LAYER}.linear_attn.A_log"
    delta_norm: str = f"{_LAYER}.linear_attn.norm.weight"
    delta_out: str = f"{_LAYER}.linear_attn.out_proj.weight"

    def under(self, model: str, head: str = "lm_head.weight") -> "TensorNames":
        """The same inside a wrapper, as multimodal checkpoints have it.

        model: what the wrapper calls the text model, here `model`. head: its lm_head.
        """

        def moved(name: str) -> str:
            return model + name.removeprefix("model") if name.startswith("model.") else name

        changes: dict[str, str | tuple[str, ...]] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                changes[field.name] = tuple(map(moved, value))
            elif isinstance(value, str):
                changes[field.name] = moved(value)
        return replace(self, **{**changes, "lm_head": head})  # type: ignore[arg-type]
