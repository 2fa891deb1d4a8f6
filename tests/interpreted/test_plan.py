"""What each expert node is sent, interpreted, against the reference."""

import pytest
import torch
from torch import Tensor

from megainfer.compute.gpu.kernels.routing import plan as plan_of_kernels
from megainfer.compute.reference import kernels as reference
from megainfer.topology import WAYS, Placement, contiguous_placement, placement_of
from tests.support.gpu_plans import drawn, planned
from tests.support.plans import LIVED_IN


def check(placement: Placement, top_k: int, tokens: int, ways: Tensor | None = None) -> None:
    weights, ids = drawn(tokens, placement.num_experts, top_k)
    parts = planned(placement, weights, ids, ways)
    homes = reference.expert_homes(placement, 0)
    expected = reference.padded_plan(weights, ids, homes, ways)
    assert len(parts) == len(expected) == placement.num_nodes
    for part, other in zip(parts, expected, strict=True):
        for own, theirs in zip(part[:3], other[:3], strict=True):
            assert own.dtype == theirs.dtype
            assert own.is_contiguous()
            assert torch.equal(own, theirs)
        assert (part.count is None) == (other.count is None)
        if part.count is not None and other.count is not None:
            assert torch.equal(part.count, other.count)
            check_places(part.places, part.rows[: int(part.count)], tokens)


def check_places(places: Tensor | None, rows: Tensor, tokens: int) -> None:
    expected = torch.full((tokens,), -1, dtype=torch.int32)
    expected[rows] = torch.arange(len(rows), dtype=torch.int32)
    assert places is not None
    assert torch.equal(places, expected)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("tokens", [0, 1, 7, 64])
def test_a_plan_is_the_references(tokens, num_nodes):
    check(contiguous_placement(9, num_nodes, [0]), 3, tokens)


@pytest.mark.parametrize("tokens", [256, 257, 600])
def test_a_plan_of_many_tokens_counts_first(tokens):
    check(contiguous_placement(12, 4, [0]), 1, tokens)


def test_a_plan_of_very_many_tokens_counts_on(monkeypatch):
    """More blocks than a block has tokens."""
    monkeypatch.setattr(plan_of_kernels, "_BLOCK", 4)
    check(contiguous_placement(12, 2, [0]), 1, 45)


def test_a_plan_follows_the_ways():
    check(LIVED_IN, 2, 40, torch.arange(40) % WAYS)


def test_a_node_that_is_nobodys_home_is_sent_nothing():
    check(placement_of(3, {0: ((0, 1), (2, 1), (0,))}), 2, 5)


def test_a_node_that_nobody_chose_is_sent_padding():
    ids = torch.tensor([[0, 1]] * 3)
    _, part = planned(contiguous_placement(4, 2, [0]), torch.ones(3, 2), ids)
    assert part.count is not None
    assert part.places is not None
    assert part.count.tolist() == [0]
    assert part.local_ids.tolist() == [[-1, -1]] * 3
    assert part.places.tolist() == [-1, -1, -1]
