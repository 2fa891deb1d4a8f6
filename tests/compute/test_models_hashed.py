"""Experts looked up by token id: a table in the checkpoint decides, the router only weighs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.selection import open_backend
from megainfer.errors import CheckpointError
from megainfer.expert_node.experts import ExpertModel
from megainfer.models.registry import load_spec
from megainfer.models.spec import ModelSpec
from megainfer.topology import contiguous_placement
from tests.support import mutations
from tests.support.checkpoints import write_checkpoint
from tests.support.kernel_names import KERNELS
from tests.support.node_pair import Pair

TOKENS = [list(range(3, 40)), [7, 7, 150, 9]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with a table a layer beside its weights."""
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("hashed"))
    path, spec = folder / "model.safetensors", load_spec(folder)
    generator = torch.Generator().manual_seed(5)
    size = (spec.vocab_size, spec.num_experts)
    tables = {
        spec.names.hash_table.format(layer=layer): _table(torch.rand(size, generator=generator))
        for layer in spec.moe_layers
    }
    save_file({**load_file(path), **tables}, path, metadata={"format": "pt"})
    return folder


def _table(order: Tensor) -> Tensor:
    return order.argsort()[:, :2].contiguous()


def logits(folder: Path, spec: ModelSpec, kernels: str) -> list[Tensor]:
    placement = contiguous_placement(spec.num_experts, 2, spec.moe_layers)
    backend = open_backend(kernels)
    with WeightReader(folder) as reader:
        attention = AttentionModel(spec, reader, placement, backend)
        nodes = [ExpertModel(spec, reader, placement, node, backend) for node in (0, 1)]
    return Pair(attention, nodes).all_logits(TOKENS)


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_table_decides(folder, kernels):
    plain = load_spec(folder)
    hashed = mutations.router(hashed=True)(plain)
    actual, expected = logits(folder, hashed, kernels), logits(folder, hashed, "reference")
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    for got, without in zip(actual, logits(folder, plain, kernels), strict=True):
        assert not torch.allclose(got, without, atol=1e-2)


def test_a_table_of_another_size_is_refused(folder):
    spec = mutations.router(hashed=True)(load_spec(folder))
    with pytest.raises(CheckpointError, match="tid2eid has shape"):
        logits(folder, mutations.router(top_k=3)(spec), "reference")


@pytest.mark.parametrize("wrong", [-1, 8])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_table_that_names_no_expert_is_refused(folder, tmp_path, wrong, kernels):
    spec = mutations.router(hashed=True)(load_spec(folder))
    tensors = load_file(folder / "model.safetensors")
    name = spec.names.hash_table.format(layer=1)
    tensors[name][5, 1] = wrong
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} names the experts .* but there are 8"):
        logits(tmp_path, spec, kernels)
