"""Grouped experts against a loop over rows and choices."""

import pytest
import torch
from torch import Tensor

from megainfer.kernels import reference as kernels

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
    return kernels.grouped_feed_forward(x, weights, groups, gate_up, down)


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
    each = [kernels.feed_forward(x, gate_up[e], down[e]).float() for e in (0, 4)]
    actual = run(x, ids, weights, gate_up, down)
    torch.testing.assert_close(actual, 0.3 * each[0] + 0.7 * each[1])
