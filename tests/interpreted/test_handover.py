"""Experts of a GPU as bytes that another node is given."""

import pytest
import torch

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.gpu.experts import GpuLayerExperts

SHAPE = ExpertsShape(experts=2, hidden=64, intermediate=32, top_k=1, bias=True)


def layer_of(weights: str) -> GpuLayerExperts:
    return GpuBackend(torch.float32, weights).experts(SHAPE)(1)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4", "fp8", "mxfp4"])
def test_what_is_given_is_computed_with_as_it_was(weights: str) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(64, 64, generator=generator), torch.randn(64, 32, generator=generator)]
    biases = torch.randn(64, generator=generator), torch.randn(64, generator=generator)
    own, other = layer_of(weights), layer_of(weights)
    own.put(0, own.prepare(*matrices, biases))
    given = own.copied(0)
    assert (len(given), own.form) == (other.copied_bytes, other.form)
    other.put(1, other.adopt(given))
    assert torch.equal(other.memory[0], own.memory[0])
    given.zero_()
    assert own.memory[0].any()
    assert other.memory[0].any()
