"""From a model folder to its spec, by the architecture that config.json names."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from megainfer.errors import ModelError
from megainfer.models.config import Config, read_json
from megainfer.models.families import (
    dbrx,
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    dots1,
    ernie4_5_moe,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    gpt_oss,
    granitemoe,
    granitemoeshared,
    hunyuan_v1_moe,
    llama,
    llama4_text,
    minimax_m2,
    mistral,
    mixtral,
    olmoe,
    phimoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5_moe_text,
    qwen3_moe,
    qwen3_next,
)
from megainfer.models.family import Family
from megainfer.models.foreign import foreign_weights
from megainfer.models.gguf.stored import as_stored
from megainfer.models.spec import ModelSpec

FAMILIES = (
    dbrx.FAMILY,
    deepseek_v2.FAMILY,
    deepseek_v3.FAMILY,
    deepseek_v32.FAMILY,
    dots1.FAMILY,
    ernie4_5_moe.FAMILY,
    glm4_moe.FAMILY,
    glm4_moe_lite.FAMILY,
    glm_moe_dsa.FAMILY,
    gpt_oss.FAMILY,
    granitemoe.FAMILY,
    granitemoeshared.FAMILY,
    hunyuan_v1_moe.FAMILY,
    llama.FAMILY,
    llama4_text.FAMILY,
    minimax_m2.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    olmoe.FAMILY,
    phimoe.FAMILY,
    qwen2.FAMILY,
    qwen2_moe.FAMILY,
    qwen3.FAMILY,
    qwen3_5_moe_text.FAMILY,
    qwen3_moe.FAMILY,
    qwen3_next.FAMILY,
)
ARCHITECTURES: Mapping[str, Family] = {
    name: family for family in FAMILIES for name in family.architectures
}


OTHER_PARTS = {"vision_config": "vision", "audio_config": "audio"}
"""What config.json has of models that take more than text."""


def load_spec(folder: Path, overrides: Mapping[str, Any] | None = None) -> ModelSpec:
    """Read config.json (and generation_config.json, for the end tokens) of a model folder.

    overrides: fields that replace those of config.json; of its text_config, if it has one, they
    replace single fields.

    Raises ModelError: no such folder, no config.json, not JSON, an architecture that is not
    supported (the message names those that are near), or a setting that is not.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; a model is a folder with a config.json")
    path = folder / "config.json"
    if not path.exists():
        problem = f"{folder} holds no config.json, so it is not a model folder"
        raise ModelError("; ".join(filter(None, (problem, foreign_weights(folder)))))
    config = Config(path, _overridden(read_json(path), overrides or {}))
    return as_stored(ARCHITECTURES[_architecture(config)].read_spec(config), config)


def _architecture(config: Config) -> str:
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names:
        raise config.fail("architectures", "but must be a list that names the model's class")
    supported = [name for name in names if isinstance(name, str) and name in ARCHITECTURES]
    if not supported:
        raise config.fail("architectures", f"which is not supported; {_way_out(config, names)}")
    return str(supported[0])


def _overridden(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**values, **overrides}
    text, own = values.get("text_config"), overrides.get("text_config")
    if isinstance(text, dict) and isinstance(own, dict):
        merged["text_config"] = {**text, **own}
    return merged


def _way_out(config: Config, names: list[Any]) -> str:
    """Why there is none of these, and what is near."""
    parts = [what for key, what in OTHER_PARTS.items() if key in config.values]
    if parts:
        return (
            f"it takes {' and '.join(parts)} beside text, and {' and '.join(parts)} isn't served; "
            "a model of the same family for text alone may be: `megainfer models` lists them"
        )
    near = [name for given in names for name in get_close_matches(str(given), ARCHITECTURES, 3)]
    nearest = f"the nearest that are: {', '.join(near)}; " if near else ""
    return f"{nearest}`megainfer models` lists all families"
