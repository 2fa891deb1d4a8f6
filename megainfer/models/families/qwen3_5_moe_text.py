"""Qwen3.5-MoE's language model, by itself or with a vision part: Qwen3-Next by other names."""

from dataclasses import replace

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.families import qwen3_next
from megainfer.models.family import Family
from megainfer.models.names import ExpertLayout, ExpertStorage, TensorNames
from megainfer.models.quantization import read_quantization
from megainfer.models.spec import ModelSpec

ARCHITECTURES = ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration")
NAMES = TensorNames(delta_fused=None)

_EXPERTS = "model.layers.{layer}.mlp.experts"
NAMES_BESIDE_VISION = NAMES.under("model.language_model")
STACKED_BESIDE_VISION = replace(
    NAMES,
    experts=ExpertLayout(ExpertStorage.STACKED),
    expert_gate_up=(f"{_EXPERTS}.gate_up_proj",),
    expert_down=f"{_EXPERTS}.down_proj",
).under("model.language_model")


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Qwen3_5MoeForCausalLM folder, or of the language model of a multimodal one,
    which stores the experts of a layer together unless they are quantised."""
    if config.values.get("text_config") is None:
        return _read_text(config, NAMES)
    stacked = read_quantization(config) is None
    names = STACKED_BESIDE_VISION if stacked else NAMES_BESIDE_VISION
    return _read_text(common.text_part(config), names)


def _read_text(config: Config, names: TensorNames) -> ModelSpec:
    ffns = [qwen3_next.moe_spec(config)] * config.positive("num_hidden_layers")
    return qwen3_next.hybrid_spec(config, ARCHITECTURES[0], ffns, names)


FAMILY = Family("Qwen3.5-MoE", "Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B", ARCHITECTURES, read_spec)
