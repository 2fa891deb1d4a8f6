"""Granite-MoE with a shared expert."""

from dataclasses import replace

from megainfer.models.config import Config
from megainfer.models.families import granitemoe
from megainfer.models.family import Family
from megainfer.models.spec import LayerSpec, ModelSpec, MoESpec, SharedExpertSpec

ARCHITECTURE = "GraniteMoeSharedForCausalLM"
_SHARED = "model.layers.{layer}.shared_mlp"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a GraniteMoeSharedForCausalLM folder."""
    spec = granitemoe.read_spec(config)
    intermediate = config.whole("shared_intermediate_size", 0)
    shared = SharedExpertSpec(intermediate, gated=False) if intermediate else None
    names = replace(
        spec.names,
        shared_gate_up=(f"{_SHARED}.input_linear.weight",),
        shared_down=f"{_SHARED}.output_linear.weight",
    )
    layers = tuple(_with_shared(layer, shared) for layer in spec.layers)
    return replace(spec, architecture=ARCHITECTURE, names=names, layers=layers)


def _with_shared(layer: LayerSpec, shared: SharedExpertSpec | None) -> LayerSpec:
    assert isinstance(layer.ffn, MoESpec)
    return replace(layer, ffn=replace(layer.ffn, shared=shared))


FAMILY = Family("Granite-MoE shared", "Granite MoE with shared experts", (ARCHITECTURE,), read_spec)
