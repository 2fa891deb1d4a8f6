"""A family's spec, with its weights where a GGUF file has them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megainfer.models.config import Config
from megainfer.models.gguf.architectures import ARCHITECTURES
from megainfer.models.gguf.names import SPLIT_LATENT
from megainfer.models.spec import AttentionSpec, LayerSpec, ModelSpec

KEY = "gguf"
"""Of a config.json that was made of a GGUF file's metadata."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What such a config.json says beside a family's own keys.

    architecture: llama.cpp's. split_latent: keys' and values' projections of the latent are apart.
    kinds: in which types tensors are stored, in words. expert_kinds: those of the routed experts.
    """

    architecture: str
    split_latent: bool
    kinds: str
    expert_kinds: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "split_latent": self.split_latent,
            "kinds": self.kinds,
            "expert_kinds": list(self.expert_kinds),
        }

    @classmethod
    def of(cls, config: Config) -> "Stored | None":
        """None where the config.json is a model's own."""
        said: Mapping[str, Any] = config.mapping(KEY)
        if not said:
            return None
        name = said.get("architecture")
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise config.fail(KEY, f"but its architecture must be one of {known}")
        return cls(
            str(name),
            said.get("split_latent") is True,
            str(said.get("kinds", "")),
            tuple(map(str, said.get("expert_kinds", ()))),
        )


def as_stored(spec: ModelSpec, config: Config) -> ModelSpec:
    """The spec as it is, or with a GGUF file's names and order of rows."""
    stored = Stored.of(config)
    if stored is None:
        return spec
    architecture = ARCHITECTURES[stored.architecture]
    names = architecture.names
    if stored.split_latent:
        names = replace(names, kv_up_split=SPLIT_LATENT.kv_up_split)
    layers = spec.layers
    if architecture.pairs:
        layers = tuple(map(_in_pairs, layers))
    return replace(spec, names=names, layers=layers)


def _in_pairs(layer: LayerSpec) -> LayerSpec:
    attention = layer.attention
    assert isinstance(attention, AttentionSpec)
    if attention.rope is None:
        return layer
    rope = replace(attention.rope, interleaved=True)
    return replace(layer, attention=replace(attention, rope=rope))
