"""Parts of config.json that several families write alike, and what we refuse in all of them."""

from collections.abc import Sequence

from megainfer.models.config import Config, read_json
from megainfer.models.names import TensorNames
from megainfer.models.quantization import read_quantization
from megainfer.models.rope_config import RopeForm, read_rope, yarn_mscale
from megainfer.models.spec import AttentionSpec, LayerSpec, ModelSpec, NormSpec

__all__ = [
    "FULL",
    "SLIDING",
    "RopeForm",
    "eos_token_ids",
    "head_dim",
    "layer_kinds",
    "model_spec",
    "read_rope",
    "refuse_unsupported",
    "sliding_window",
    "sparse_layers",
    "text_part",
    "yarn_mscale",
]


def refuse_unsupported(config: Config) -> None:
    """Raise ModelError, naming key and value, for settings that would change the outputs."""
    read_quantization(config)
    if config.values.get("hidden_act", "silu") != "silu":
        raise config.fail("hidden_act", "which is not supported; supported: silu")


FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, as layer_types calls them."""


def sliding_window(config: Config, default: int | None = None) -> int | None:
    """How many positions a query sees, its own included; None where that is all of them.

    default: where config.json doesn't have the key, or has null.
    """
    given = config.values.get("sliding_window") is not None
    window = config.positive("sliding_window") if given else default
    sees_all = window is None or window >= config.positive("max_position_embeddings")
    return None if sees_all else window


def layer_kinds(config: Config, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """Of each layer, by layer_types, or `default` where that is absent.

    Raises ModelError for kinds that are not `known`, or too few or many of them.
    """
    count, kinds = config.positive("num_hidden_layers"), config.values.get("layer_types")
    if kinds is None:
        return list(default)
    if (
        not isinstance(kinds, list)
        or len(kinds) != count
        or any(kind not in known for kind in kinds)
    ):
        raise config.fail("layer_types", f"but must be a list of {count}: {' or '.join(known)}")
    return kinds


def text_part(config: Config) -> Config:
    """The language model's part of a multimodal checkpoint's config.json.

    What it leaves open, as the dtype, is the wrapper's.
    """
    text = config.mapping("text_config")
    if not text:
        raise config.fail("text_config", "but must describe the language model")
    own = {key: value for key, value in text.items() if value is not None}
    return Config(config.path, {**config.values, **own})


def head_dim(config: Config) -> int:
    """Size of one attention head; where it is not given, the heads share hidden_size."""
    heads = config.positive("num_attention_heads")
    if config.values.get("head_dim") is None and config.positive("hidden_size") % heads:
        raise config.fail("hidden_size", f"which {heads} attention heads cannot share evenly")
    return config.positive("head_dim", default=config.positive("hidden_size") // heads)


def grouped_heads(config: Config) -> AttentionSpec:
    """What most families write alike of grouped attention: heads, rotation, attention_bias."""
    heads = config.positive("num_attention_heads")
    bias = config.flag("attention_bias", False)
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.positive("num_key_value_heads", default=heads),
        head_dim=head_dim(config),
        rope=read_rope(config),
        qkv_bias=bias,
        out_bias=bias,
    )


def sparse_layers(config: Config) -> list[bool]:
    """For each layer, whether it has experts (mlp_only_layers and decoder_sparse_step)."""
    dense = config.integers("mlp_only_layers")
    step = config.positive("decoder_sparse_step", default=1)
    layers = range(config.positive("num_hidden_layers"))
    return [layer not in dense and (layer + 1) % step == 0 for layer in layers]


def eos_token_ids(config: Config) -> tuple[int, ...]:
    """End tokens: from generation_config.json where it names some, else from config.json."""
    path = config.path.with_name("generation_config.json")
    if path.exists():
        generation = Config(path, read_json(path)).integers("eos_token_id")
        if generation:
            return generation
    return config.integers("eos_token_id")


def stored_dtype(config: Config) -> str:
    """As `Config.dtype`; bfloat16 where a quantised checkpoint, as gpt-oss, says nothing of what it
    leaves as it is: float32 is only what unquantised ones mean by that."""
    said = any(config.values.get(key) is not None for key in ("dtype", "torch_dtype"))
    return config.dtype() if said or read_quantization(config) is None else "bfloat16"


def model_spec(
    config: Config,
    architecture: str,
    layers: tuple[LayerSpec, ...],
    names: TensorNames,
    default_eps: float,
) -> ModelSpec:
    """The spec with what all families write under the same keys."""
    return ModelSpec(
        architecture=architecture,
        hidden_size=config.positive("hidden_size"),
        vocab_size=config.positive("vocab_size"),
        layers=layers,
        norm=NormSpec(config.number("rms_norm_eps", default_eps)),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        max_position=config.positive("max_position_embeddings"),
        dtype=stored_dtype(config),
        eos_token_ids=eos_token_ids(config),
        names=names,
    )
