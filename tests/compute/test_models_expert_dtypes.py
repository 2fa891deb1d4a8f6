"""An expert node's model with every kind of kernel and weights, from one checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.backend import Backend
from megainfer.compute.selection import Precision, open_backend
from megainfer.expert_node.experts import ExpertModel
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.registry import load_spec
from megainfer.topology import contiguous_placement
from tests.support.checkpoints import write_checkpoint
from tests.support.kernel_experts import levels, relative_error

ROWS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("model"))


def outputs(folder: Path, backend: Backend) -> Tensor:
    """What the node's last layer makes of random rows that come in two messages."""
    spec = load_spec(folder)
    placement = contiguous_placement(spec.num_experts, 1, spec.moe_layers)
    with WeightReader(folder) as reader:
        model = ExpertModel(spec, reader, placement, 0, backend)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, spec.hidden_size, generator=generator).to(backend.dtype)
    ids = torch.randint(-1, spec.num_experts, (ROWS, spec.top_k), generator=generator).int()
    weights = torch.rand(ids.shape, generator=generator)
    layer = spec.moe_layers[-1]
    dispatches = [
        Dispatch(i, 0, layer, 0, hidden[rows], ids[rows], weights[rows])
        for i, rows in enumerate((slice(0, 7), slice(7, ROWS)))
    ]
    out = torch.full_like(hidden, torch.nan)
    model.forward(layer, dispatches, [out[:7], out[7:]])
    assert sum(model.counters()["expert_tokens"][-1].values()) == int((ids >= 0).sum())
    return out


@pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")
@pytest.mark.parametrize(
    ("weight_dtype", "bound"), [("float32", 2e-6), ("bfloat16", 8e-3), ("int8", 3e-2)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_are_as_far_from_the_reference_as_their_weights(
    folder, weight_dtype, bound, threads
):
    exact = outputs(folder, open_backend("reference"))
    ours = outputs(folder, open_backend("cpu", Precision(experts=weight_dtype), threads))
    assert relative_error(ours, exact.double()) < bound


def test_weights_are_those_of_the_dtype_that_was_asked_for(folder):
    exact = outputs(folder, open_backend("reference"))
    rounded = outputs(folder, open_backend("reference", Precision(experts="bfloat16")))
    assert 1e-4 < relative_error(rounded, exact.double()) < 1e-2
