"""Dense networks and shared experts, interpreted, against the reference, rounding included."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.gpu import ffn as gpu
from megainfer.compute.gpu.products import TorchProducts
from megainfer.compute.reference import ffn as reference
from megainfer.models.registry import load_spec
from megainfer.models.sources import FfnSources
from megainfer.models.spec import DenseSpec, ModelSpec, MoESpec
from tests.support.checkpoints import write_checkpoint

WITH_DENSE = [("qwen2_moe", "dense_between"), ("ernie4_5_moe", "dense_first")]
WITH_SHARED = [("qwen2_moe", "dense_between"), ("granitemoeshared", "shared")]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=("float32", "bfloat16"))
def dtype(request) -> torch.dtype:
    return request.param


def sources_of(spec: ModelSpec) -> Iterator[tuple[DenseSpec | MoESpec, FfnSources]]:
    for index, layer in enumerate(spec.layers):
        yield layer.ffn, FfnSources(spec, index)


def check(own: Tensor, expected: Tensor) -> None:
    """As a whole: what is rounded on the way to one small element may be large."""
    assert own.dtype is expected.dtype
    assert (own - expected).float().norm() < TOLERANCE[own.dtype] * expected.float().norm()


@pytest.mark.parametrize("family", WITH_DENSE, ids="-".join)
def test_a_dense_network_is_added(tmp_path, family, dtype):
    spec = load_spec(write_checkpoint(*family, tmp_path))
    layers = [(ffn, own) for ffn, own in sources_of(spec) if isinstance(ffn, DenseSpec)]
    assert layers
    with WeightReader(tmp_path) as reader:
        for ffn, sources in layers:
            x = torch.randn(5, spec.hidden_size).to(dtype)
            added = reference.Dense(ffn, sources, reader, dtype).forward(x)
            expected = x.add(added, alpha=spec.multipliers.residual)
            gpu.Dense(ffn, sources, reader, dtype, TorchProducts()).add(x, x)
            check(x, expected)


@pytest.mark.parametrize("family", WITH_SHARED, ids="-".join)
def test_a_shared_expert_is_scaled(tmp_path, family, dtype):
    """By its gate, where it has one, and by the residual multiplier."""
    spec = load_spec(write_checkpoint(*family, tmp_path))
    layers = [(ffn.shared, own) for ffn, own in sources_of(spec) if isinstance(ffn, MoESpec)]
    with WeightReader(tmp_path) as reader:
        for shared, sources in layers:
            assert shared is not None
            hidden = torch.randn(5, spec.hidden_size).to(dtype)
            whole = reference.SharedExpert(shared, sources, reader, dtype).forward(hidden)
            own = gpu.SharedExpert(shared, sources, reader, dtype, TorchProducts()).forward(hidden)
            check(own, whole * spec.multipliers.residual)
