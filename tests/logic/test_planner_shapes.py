"""The shapes that have names."""

import pytest

from megainfer.models.registry import load_spec
from megainfer.models.sources import attention_weight_bytes
from megainfer.planner.shapes import SHAPES, named_shape

PARAMETERS = {"mixtral-8x22b": 141e9, "dbrx": 132e9, "scaled-moe": 317e9}


@pytest.mark.parametrize("name", SHAPES)
def test_a_named_shape_has_as_many_parameters_as_its_model(name: str) -> None:
    folder = named_shape(name)
    assert folder is not None
    spec = load_spec(folder)
    experts = len(spec.moe_layers) * spec.num_experts * spec.expert_weight_bytes(1)
    assert attention_weight_bytes(spec, 1) + experts == pytest.approx(PARAMETERS[name], rel=0.005)
