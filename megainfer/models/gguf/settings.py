"""Parts of a config.json that several architectures write alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megainfer.errors import ModelError
from megainfer.gguf.header import TensorEntry
from megainfer.gguf.metadata import Metadata
from megainfer.models.gguf.names import NAMES

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """What an architecture's reader sees: the metadata under the architecture's name, and the
    tensors of all files."""

    architecture: str
    metadata: Metadata
    tensors: Mapping[str, TensorEntry]

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def whole(self, name: str) -> int | None:
        return self.metadata.alike(self.key(name))

    def number(self, name: str) -> float | None:
        return self.metadata.number(self.key(name))

    def flag(self, name: str) -> bool | None:
        return self.metadata.flag(self.key(name))

    def needed(self, name: str) -> int:
        """Raises ModelError where the file doesn't say it."""
        value = self.whole(name)
        if value is None:
            raise ModelError(f"{self.metadata.path} has no {self.key(name)}")
        return value

    def has(self, template: str, layer: int = 0) -> bool:
        """Whether there is such a tensor, of this layer where it is one of a layer."""
        return template.format(layer=layer) in self.tensors

    def expect(self, name: str, *supported: float | None) -> None:
        """Raises ModelError where the file says something else."""
        if self.number(name) not in supported:
            shown = ", ".join(str(value) for value in supported if value is not None)
            raise self.metadata.fail(
                self.key(name), f"which is not supported; supported: {shown or 'none'}"
            )


def common(model: GgufModel) -> Json:
    """What all architectures have."""
    embedding = model.tensors.get(NAMES.embedding)
    if embedding is None:
        raise ModelError(f"{model.metadata.path} holds no tensor {NAMES.embedding}")
    heads = model.needed("attention.head_count")
    head_dim = model.whole("attention.key_length")
    config = {
        "vocab_size": embedding.shape[0],
        "hidden_size": model.needed("embedding_length"),
        "num_hidden_layers": model.needed("block_count"),
        "intermediate_size": model.whole("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.whole("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "max_position_embeddings": model.needed("context_length"),
        "rms_norm_eps": model.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": model.number("rope.freq_base"),
        "tie_word_embeddings": NAMES.lm_head not in model.tensors,
        "num_experts_per_tok": model.whole("expert_used_count"),
        "hidden_act": "silu",
        "rope_scaling": rope_scaling(model),
    }
    return {key: value for key, value in config.items() if value is not None}


def whole_heads(model: GgufModel, config: Json) -> None:
    """Check what is said of heads that are rotated whole, and whose values are as wide as keys."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    model.expect("rope.dimension_count", None, head_dim)
    model.expect("attention.value_length", None, head_dim)


def rope_scaling(model: GgufModel) -> Json | None:
    """How the context was stretched. Raises ModelError for a type that isn't known."""
    kind = model.metadata.text(model.key("rope.scaling.type")) or "none"
    factor = model.number("rope.scaling.factor")
    original = model.whole("rope.scaling.original_context_length")
    if kind == "none" or factor is None:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise model.metadata.fail(
            model.key("rope.scaling.type"), "which is not supported; supported: none, linear, yarn"
        )
    model.expect("rope.scaling.yarn_ext_factor", None, 1.0)
    yarn = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": model.number("rope.scaling.yarn_attn_factor"),
        "beta_fast": model.number("rope.scaling.yarn_beta_fast"),
        "beta_slow": model.number("rope.scaling.yarn_beta_slow"),
    }
    return {key: value for key, value in yarn.items() if value is not None}


SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3
"""llama.cpp's numbers of functions that make scores of a router's logits."""


def softmax_router(model: GgufModel, normalised: bool) -> None:
    """Check what is said of a router whose scores are the softmax over all experts."""
    model.expect("expert_gating_func", None, 0, SOFTMAX)
    model.expect("expert_weights_scale", None, 0, 1)
    key = model.key("expert_weights_norm")
    if model.flag("expert_weights_norm") not in (None, normalised):
        raise model.metadata.fail(key, f"but must be {normalised} in this architecture")


def sigmoid_router(model: GgufModel) -> Json:
    """DeepSeek-V3's router, and its shared experts, under that model's keys."""
    model.expect("expert_gating_func", SIGMOID)
    return {**grouped_router(model), "scoring_func": "sigmoid", "topk_method": "noaux_tc"}


def grouped_router(model: GgufModel) -> Json:
    """What DeepSeek-V2 and V3 and their heirs write of experts."""
    intermediate = model.needed("expert_feed_forward_length")
    shared = model.whole("expert_shared_count") or 0
    model.expect("expert_shared_feed_forward_length", None, shared * intermediate)
    groups, kept = model.whole("expert_group_count"), model.whole("expert_group_used_count")
    return {
        "n_routed_experts": model.needed("expert_count"),
        "moe_intermediate_size": intermediate,
        "n_shared_experts": shared,
        "routed_scaling_factor": model.number("expert_weights_scale") or 1.0,
        "norm_topk_prob": bool(model.flag("expert_weights_norm")),
        "first_k_dense_replace": model.whole("leading_dense_block_count") or 0,
        "n_group": groups or 1,
        "topk_group": kept or groups or 1,
    }
