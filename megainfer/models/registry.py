"""From a model folder to its spec, by the architecture that config.json names."""

from collections.abc import Callable, Mapping
from pathlib import Path

from megainfer.errors import ModelError
from megainfer.models.config import Config, read_json
from megainfer.models.families import mixtral, olmoe, qwen2_moe, qwen3_moe, qwen3_next
from megainfer.models.spec import ModelSpec

FAMILIES: Mapping[str, Callable[[Config], ModelSpec]] = {
    "MixtralForCausalLM": mixtral.read_spec,
    "OlmoeForCausalLM": olmoe.read_spec,
    "Qwen2MoeForCausalLM": qwen2_moe.read_spec,
    "Qwen3MoeForCausalLM": qwen3_moe.read_spec,
    "Qwen3NextForCausalLM": qwen3_next.read_spec,
}


def load_spec(folder: Path) -> ModelSpec:
    """Read config.json (and generation_config.json, for the end tokens) of a model folder.

    Raises ModelError: no such folder, no config.json, not JSON, an architecture that is not
    supported (the message lists those that are), or a setting that is not.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; a model is a folder with a config.json")
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder} holds no config.json, so it is not a model folder")
    config = Config(path, read_json(path))
    return FAMILIES[_architecture(config)](config)


def _architecture(config: Config) -> str:
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names:
        raise config.fail("architectures", "but must be a list that names the model's class")
    supported = [name for name in names if name in FAMILIES]
    if not supported:
        known = ", ".join(FAMILIES)
        raise config.fail("architectures", f"which is not supported; supported: {known}")
    return str(supported[0])
