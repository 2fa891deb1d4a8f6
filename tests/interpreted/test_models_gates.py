"""Feed-forward halves of whole small models, interpreted, against the reference."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.backend import Backend
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.reference.backend import ReferenceBackend
from megainfer.expert_node.experts import ExpertModel
from megainfer.models.registry import load_spec
from megainfer.models.spec import Activation, ActivationSpec, ModelSpec
from megainfer.topology import WAYS, Placement, Table, contiguous_placement, placed
from tests.support import mutations
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import Pair

TOKENS = [list(range(3, 9)), [7, 150]]
FAMILIES = [
    ("qwen2_moe", "dense_between"),  # dense layers, a shared expert with a gate
    ("granitemoeshared", "shared"),  # a shared expert without, and multipliers
    ("deepseek_v2", "yarn_groups"),  # groups by their best
    ("deepseek_v3", "groups"),  # groups by their best two, a bias of the choice
    ("ernie4_5_moe", "dense_first"),  # the least sum of weights
    ("phimoe", "plain"),  # the sparsemixer
    ("gpt_oss", "alternating"),  # weights by softmax over the chosen, a bias of the logits
    ("llama", "gqa_old"),  # no router
]


def logits_of(
    folder: Path, spec: ModelSpec, placement: Placement, backend: Backend, before: Placement
) -> Sequence[Tensor]:
    """before: where the attention side is told first that experts live."""
    with WeightReader(folder, device=backend.device) as reader:
        attention = AttentionModel(spec, reader, before, backend)
        nodes = range(placement.num_nodes)
        experts = [ExpertModel(spec, reader, placement, node, backend) for node in nodes]
    attention.place(placement)
    return Pair(attention, experts).all_logits(TOKENS)


def check(
    folder: Path, spec: ModelSpec, placement: Placement, before: Placement | None = None
) -> None:
    own, expected = (
        logits_of(folder, spec, placement, kind(torch.float32, torch.float32), before or placement)
        for kind in (GpuBackend, ReferenceBackend)
    )
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_logits_equal_the_references(tmp_path, family, num_nodes):
    folder = write_checkpoint(*family, tmp_path)
    spec = load_spec(folder)
    nodes = min(num_nodes, spec.num_experts)
    check(folder, spec, contiguous_placement(spec.num_experts, nodes, spec.moe_layers))


def test_tokens_share_replicas_once_they_are_there(tmp_path):
    """Each expert on both nodes, some ways to one, some to the other."""
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path)
    spec = load_spec(folder)
    everyone = tuple(range(spec.num_experts))
    to_first = tuple(expert % (WAYS + 1) for expert in everyone)
    to_second = tuple(WAYS - ways for ways in to_first)
    table = Table((everyone, everyone), (to_first, to_second))
    before = contiguous_placement(spec.num_experts, 1, spec.moe_layers)
    after = placed(spec.num_experts, dict.fromkeys(spec.moe_layers, table))
    check(folder, spec, after, before)


@pytest.mark.parametrize("kind", [Activation.GELU, Activation.GELU_TANH])
def test_dense_networks_and_shared_experts_know_every_activation(tmp_path, kind):
    folder = write_checkpoint("qwen2_moe", "dense_between", tmp_path)
    spec = load_spec(folder)
    for change in (mutations.dense, mutations.shared):
        spec = change(activation=ActivationSpec(kind, limit=0.01, up_offset=0.5))(spec)
    check(folder, spec, contiguous_placement(spec.num_experts, 1, spec.moe_layers))
