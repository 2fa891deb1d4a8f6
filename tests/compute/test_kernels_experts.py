"""Grouped experts against a loop over rows and choices."""

import pytest
import torch
from torch import Tensor

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.reference import kernels as kernels
from megainfer.compute.reference.experts import ReferenceLayerExperts
from megainfer.models.spec import ActivationSpec

D, F, E = 12, 10, 5


def weights_of_experts() -> tuple[Tensor, Tensor]:
    return torch.randn(E, 2 * F, D), torch.randn(E, D, F)


def naive(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for row in range(len(x)):
        for expert, weight in zip(ids[row].tolist(), weights[row].tolist(), strict=True):
            if expert >= 0:
                gate, up = gate_up[expert] @ x[row]
                out[row] += weight * (down[expert] @ (gate * torch.sigmoid(gate) * up))
    return out


def run(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    groups = kernels.group_by_expert(ids, E)
    networks = [kernels.Network(*parts) for parts in zip(gate_up, down, strict=True)]
    return kernels.grouped_feed_forward(x, weights, groups, networks)


@pytest.mark.parametrize(
    "ids",
    [
        [[0, 3], [3, 1], [4, 0]],
        [[2, 2], [2, -1], [-1, 2]],  # all to one expert
        [[-1, -1], [1, -1], [-1, -1]],  # rows with nothing here
        [[-1, -1], [-1, -1], [-1, -1]],
    ],
)
def test_grouped_experts_equal_a_loop(ids):
    gate_up, down = weights_of_experts()
    local_ids = torch.tensor(ids, dtype=torch.int32)
    x, weights = torch.randn(3, D), torch.rand(3, 2)
    split = gate_up.view(E, 2, F, D)
    expected = naive(x, local_ids, weights, split, down)
    actual = run(x, local_ids, weights, gate_up, down)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("on_input", [False, True])
def test_what_a_device_computes_is_what_the_host_does(on_input):
    gate_up, down = weights_of_experts()
    networks = [kernels.Network(*parts) for parts in zip(gate_up, down, strict=True)]
    ids = torch.tensor([[0, 3], [2, -1], [-1, -1], [3, 4]], dtype=torch.int32)
    x, weights = torch.randn(4, D), torch.rand(4, 2)
    x[2] = torch.nan  # a row of nobody
    weights = weights.masked_fill(ids < 0, 0.0)
    groups = kernels.group_by_expert(ids, E)
    expected = kernels.grouped_feed_forward(x, weights, groups, networks, on_input)
    actual = kernels.every_feed_forward(x, weights, ids, networks, on_input)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert kernels.choices_of_each(ids, E).tolist() == groups.counts == [1, 0, 1, 2, 1]


def test_no_rows_at_all():
    gate_up, down = weights_of_experts()
    empty = torch.empty(0, 2, dtype=torch.int32)
    assert run(torch.empty(0, D), empty, torch.empty(0, 2), gate_up, down).shape == (0, D)


def test_weight_of_an_absent_choice_is_not_used():
    gate_up, down = weights_of_experts()
    ids = torch.tensor([[1, -1]], dtype=torch.int32)
    x = torch.randn(1, D)
    once = run(x, ids, torch.tensor([[0.5, 0.0]]), gate_up, down)
    again = run(x, ids, torch.tensor([[0.5, 9.0]]), gate_up, down)
    assert torch.equal(once, again)


def test_groups_are_sorted_by_expert_then_by_row():
    groups = kernels.group_by_expert(torch.tensor([[3, 0], [-1, 3], [0, 3]]), E)
    assert groups.counts == [2, 0, 0, 3, 0]
    assert groups.order.tolist() == [1, 4, 0, 3, 5]


def test_bfloat16_is_weighted_and_summed_in_float32():
    gate_up, down = (w.bfloat16() for w in weights_of_experts())
    ids, weights = torch.tensor([[0, 4]], dtype=torch.int32), torch.tensor([[0.3, 0.7]])
    x = torch.randn(1, D).bfloat16()
    each = [kernels.feed_forward(x, kernels.Network(gate_up[e], down[e])).float() for e in (0, 4)]
    actual = run(x, ids, weights, gate_up, down)
    torch.testing.assert_close(actual, 0.3 * each[0] + 0.7 * each[1])


def test_gpt_oss_experts_are_its_own():
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = GptOssConfig(hidden_size=D, intermediate_size=F, num_local_experts=E)
    theirs = GptOssExperts(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    activation = ActivationSpec(limit=7.0, alpha=1.702, up_offset=1.0)
    ours = ReferenceLayerExperts(ExpertsShape(E, D, F, 2, activation, bias=True), torch.float32)
    for e in range(E):
        gate_up, bias = theirs.gate_up_proj[e].detach().T, theirs.gate_up_proj_bias[e].detach()
        prepared = ours.prepare(
            torch.cat([gate_up[0::2], gate_up[1::2]]),
            theirs.down_proj[e].detach().T,
            (torch.cat([bias[0::2], bias[1::2]]), theirs.down_proj_bias[e].detach()),
        )
        ours.put(e, prepared)
    x, weights = 3 * torch.randn(9, D), torch.rand(9, 2)
    ids = torch.stack([torch.randperm(E)[:2] for _ in range(9)])
    out = torch.full_like(x, torch.nan)
    ours.forward([x], [ids.int()], [weights], [out])
    with torch.no_grad():
        expected = theirs(x, ids, weights)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)


def test_a_weight_on_the_input_reaches_the_activation():
    gate_up, down = weights_of_experts()
    ours = ReferenceLayerExperts(ExpertsShape(E, D, F, 1, weight_on_input=True), torch.float32)
    for e in range(E):
        ours.put(e, ours.prepare(gate_up[e], down[e]))
    x, weights = torch.randn(4, D), torch.rand(4, 1)
    ids, out = torch.tensor([[0], [3], [-1], [1]], dtype=torch.int32), torch.empty(4, D)
    ours.forward([x], [ids], [weights], [out])
    expected = run(weights * x, ids, torch.ones(4, 1), gate_up, down)
    torch.testing.assert_close(out, expected)


def test_ids_of_no_expert_are_not_here():
    """Whatever a peer sends: below -1 and past the last one too."""
    layer = ReferenceLayerExperts(ExpertsShape(E, D, F, 2), torch.float32)
    gate_up, down = weights_of_experts()
    for expert in range(E):
        layer.put(expert, layer.prepare(gate_up[expert], down[expert]))
    x, weights = torch.randn(4, D), torch.rand(4, 2)
    ids = torch.tensor([[0, -7], [E, 3], [2**31 - 1, -(2**31)], [1, -1]], dtype=torch.int32)
    known = torch.tensor([[0, -1], [-1, 3], [-1, -1], [1, -1]], dtype=torch.int32)
    out, expected = torch.empty(2, 4, D)
    counts = layer.forward([x], [ids], [weights], [out])
    assert torch.equal(layer.forward([x], [known], [weights], [expected]), counts)
    assert counts.tolist() == [1, 1, 0, 1, 0]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("counts", [[2, None], [0, 1]])
def test_rows_that_do_not_count_choose_nothing(counts):
    layer = ReferenceLayerExperts(ExpertsShape(E, D, F, 2), torch.float32)
    gate_up, down = weights_of_experts()
    for expert in range(E):
        layer.put(expert, layer.prepare(gate_up[expert], down[expert]))
    ids = [torch.randint(E, (4, 2)).int() for _ in counts]
    x, weights = ([torch.randn(4, D) for _ in counts], [torch.rand(4, 2) for _ in counts])
    outs, expected = ([torch.empty(4, D) for _ in counts] for _ in "ab")
    known = [None if n is None else torch.tensor([n], dtype=torch.int32) for n in counts]
    chosen = layer.forward(x, ids, weights, outs, known)
    for own, count in zip(ids, counts, strict=True):
        own[4 if count is None else count :] = -1
    assert torch.equal(chosen, layer.forward(x, ids, weights, expected))
    assert all(map(torch.equal, outs, expected))
