"""The gate in C++ at every instruction set: the reference's choices, spread as its plan does."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.compute.cpu.kernels.attention import AttentionKernel, Chosen, pack_gate
from megainfer.compute.cpu.kernels.packed import pack_norm
from megainfer.compute.cpu.kernels.routing import pack_router
from megainfer.compute.reference import kernels as reference
from megainfer.models.spec import ExpertGroups, GroupScore, NormSpec, RouterScore, RouterSpec
from megainfer.topology import WAYS, Placement, Table, placement_of
from tests.support.kernel_experts import levels

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

every_level = pytest.mark.parametrize("level", levels())
EPS = 1e-6
TOKENS, HIDDEN, VOCABULARY = 31, 50, 11

SPECS = {
    "normalised": RouterSpec(37, 4, True, False),
    "rounded": RouterSpec(8, 3, False, True),
    "all experts": RouterSpec(5, 5, True, True),
    "groups by maximum": RouterSpec(
        36, 4, False, False, groups=ExpertGroups(6, 2, GroupScore.MAX), scale=16.0
    ),
    "groups by top two": RouterSpec(
        36,
        4,
        True,
        False,
        RouterScore.SIGMOID,
        selection_bias=True,
        groups=ExpertGroups(4, 2, GroupScore.TOP2_SUM),
        epsilon=1e-20,
        scale=2.5,
    ),
    "sigmoid, one": RouterSpec(16, 1, False, True, RouterScore.SIGMOID),
    "sqrt softplus": RouterSpec(
        19, 3, True, False, RouterScore.SQRT_SOFTPLUS, selection_bias=True, epsilon=0.1, scale=1.5
    ),
    "logits": RouterSpec(19, 3, False, True, RouterScore.LOGIT, bias=True, scale=0.22),
    "sparsemixer": RouterSpec(16, 2, False, False, RouterScore.SPARSEMIXER, jitter=0.2),
    "least sum": RouterSpec(16, 3, True, False, selection_bias=True, least_sum=0.5),
    "constant": RouterSpec(1, 1, False, False, RouterScore.CONSTANT, scale=0.5),
    "hashed": RouterSpec(19, 3, True, False, RouterScore.SQRT_SOFTPLUS, hashed=True),
}


class Gate:
    """Random weights of one gate."""

    def __init__(self, spec: RouterSpec) -> None:
        generator = torch.Generator().manual_seed(spec.num_experts)
        experts, self.spec = spec.num_experts, spec
        self.x = torch.randn(TOKENS, HIDDEN, generator=generator)
        self.token_ids = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
        self.ways = torch.arange(TOKENS) % WAYS
        self.norm = torch.rand(HIDDEN, generator=generator)
        self.weight = torch.randn(experts, HIDDEN, generator=generator) / 4
        self.bias = torch.randn(experts, generator=generator) if spec.bias else None
        self.selection_bias = (
            torch.randn(experts, generator=generator) / 4 if spec.selection_bias else None
        )
        order = torch.rand(VOCABULARY, experts, generator=generator).argsort()
        self.table = order[:, : spec.top_k].contiguous() if spec.hashed else None

    def native(
        self, level: str, nodes: int, dtype: torch.dtype, moved: reference.Homes | None = None
    ) -> tuple[Tensor, Chosen]:
        """moved: where experts are after the gate was packed, if they move."""
        kernel, constant = AttentionKernel(1, level), self.spec.score is RouterScore.CONSTANT
        gate = pack_gate(
            None if constant else kernel.pack(self.weight, "float32", self.bias),
            pack_norm(self.norm, NormSpec(EPS)),
            dealt(self.spec.num_experts, nodes),
            pack_router(self.spec, dtype, self.selection_bias, self.table),
        )
        if moved is not None:
            gate.move(moved)
        hidden = torch.full((TOKENS, HIDDEN), torch.nan, dtype=dtype)
        return hidden, kernel.gate(gate, self.x, self.token_ids, hidden, self.ways)

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden, weights and ids."""
        normed = reference.rms_norm(self.x, self.norm, EPS)
        looked_up = None if self.table is None else self.table[self.token_ids]
        routing = reference.Routing(self.selection_bias, looked_up)
        return normed, *reference.route(linear(normed, self.weight, self.bias), self.spec, routing)


def dealt(experts: int, nodes: int) -> reference.Homes:
    """Experts in turn to one node after the other."""
    owners = tuple((expert % nodes,) for expert in range(experts))
    return reference.expert_homes(placement_of(nodes, {0: owners}), 0)


@every_level
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SPECS)
def test_gate_plans_as_the_reference(level, nodes, dtype, name):
    gate = Gate(SPECS[name])
    hidden, chosen = gate.native(level, nodes, dtype)
    normed, weights, ids = gate.expected()
    torch.testing.assert_close(hidden, normed.to(dtype), atol=1e-6, rtol=1e-2)
    plan = reference.scatter_plan(weights, ids, dealt(gate.spec.num_experts, nodes))
    rounded = gate.spec.rounded and dtype is torch.bfloat16
    for node, part in enumerate(plan):
        count = chosen.counts[node]
        assert torch.equal(chosen.rows[node, :count], part.rows)
        assert torch.equal(chosen.ids[node, :count], part.local_ids)
        torch.testing.assert_close(
            chosen.weights[node, :count], part.weights, atol=1e-6, rtol=8e-3 if rounded else 1e-5
        )


@every_level
def test_tokens_go_where_experts_have_moved(level):
    gate = Gate(SPECS["normalised"])
    experts = gate.spec.num_experts
    owners = tuple((expert * 7 % 3, (expert * 7 + 1) % 3) for expert in range(experts))
    moved = reference.expert_homes(placement_of(3, {0: owners}), 0)
    _, chosen = gate.native(level, 3, torch.float32, moved)
    _, weights, ids = gate.expected()
    for node, part in enumerate(reference.scatter_plan(weights, ids, moved)):
        count = chosen.counts[node]
        assert torch.equal(chosen.rows[node, :count], part.rows)
        assert torch.equal(chosen.ids[node, :count], part.local_ids)


@every_level
def test_tokens_take_the_ways_of_shared_experts(level):
    """More nodes than before, each with all experts, and ways that differ from expert to expert."""
    gate = Gate(SPECS["normalised"])
    experts = gate.spec.num_experts
    parts = [(expert % 14, 1 + expert % 2) for expert in range(experts)]
    ways = [(first, second, WAYS - first - second) for first, second in parts]
    everywhere = Table((tuple(range(experts)),) * 3, tuple(zip(*ways, strict=True)))
    shared = reference.expert_homes(Placement(experts, (everywhere,), {0: 0}), 0)
    _, chosen = gate.native(level, 2, torch.float32, shared)
    _, weights, ids = gate.expected()
    assert len(chosen.counts) == 3
    for node, part in enumerate(reference.scatter_plan(weights, ids, shared, gate.ways)):
        count = chosen.counts[node]
        assert count
        assert torch.equal(chosen.rows[node, :count], part.rows)
        assert torch.equal(chosen.ids[node, :count], part.local_ids)


@every_level
def test_weights_are_rounded_to_the_model_dtype_before_they_are_scaled(level):
    gate = Gate(SPECS["logits"])
    _, chosen = gate.native(level, 1, torch.bfloat16)
    unscaled = chosen.weights / gate.spec.scale
    torch.testing.assert_close(unscaled, unscaled.bfloat16().float(), rtol=1e-6, atol=0)


def test_equal_scores_go_to_the_lower_expert():
    kernel = AttentionKernel()
    gate = pack_gate(
        kernel.pack(torch.zeros(40, 8), "float32"),
        pack_norm(torch.ones(8), NormSpec(EPS)),
        dealt(40, 1),
        pack_router(RouterSpec(40, 3, True, False), torch.float32),
    )
    tokens = torch.zeros(2, dtype=torch.int64)
    chosen = kernel.gate(gate, torch.ones(2, 8), tokens, torch.empty(2, 8))
    assert chosen.ids.tolist() == [[[0, 1, 2]] * 2]
    torch.testing.assert_close(chosen.weights, torch.full((1, 2, 3), 1 / 3))
