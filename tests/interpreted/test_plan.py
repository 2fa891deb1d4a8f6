"""What each expert node is sent, interpreted, against the reference."""

import pytest
import torch
from torch import Tensor

from megainfer.compute.gpu.kernels.gate import Choices
from megainfer.compute.gpu.kernels.plan import plan
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST
from megainfer.topology import WAYS, contiguous_placement, placement_of
from tests.compute.test_ways import LIVED_IN


def choices_of(
    weights: Tensor, ids: Tensor, homes: reference.Homes, ways: Tensor | None = None
) -> Choices:
    """As the gate gives them."""
    way = torch.zeros(1, 1, dtype=torch.int64) if ways is None else ways[:, None]
    nodes, local_ids = homes.node[ids, way].int(), homes.local_id[ids, way]
    return Choices(nodes, local_ids, weights, torch.arange(len(ids)))


def drawn(tokens: int, experts: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Weights and ids."""
    return torch.rand(tokens, top_k), torch.rand(tokens, experts).argsort(-1)[:, :top_k]


def check(homes: reference.Homes, top_k: int, tokens: int, ways: Tensor | None = None) -> None:
    weights, ids = drawn(tokens, homes.node.shape[0], top_k)
    parts = plan(HOST, choices_of(weights, ids, homes, ways), homes)
    expected = reference.padded_plan(weights, ids, homes, ways)
    assert len(parts) == len(expected) == homes.num_nodes
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
    check(reference.expert_homes(contiguous_placement(9, num_nodes, [0]), 0), 3, tokens)


@pytest.mark.parametrize("tokens", [256, 257, 600])
def test_a_plan_of_many_tokens_counts_first(tokens):
    check(reference.expert_homes(contiguous_placement(12, 4, [0]), 0), 1, tokens)


def test_a_plan_follows_the_ways():
    check(reference.expert_homes(LIVED_IN, 0), 2, 40, torch.arange(40) % WAYS)


def test_a_node_that_is_nobodys_home_is_sent_nothing():
    homes = reference.expert_homes(placement_of(3, {0: ((0, 1), (2, 1), (0,))}), 0)
    check(homes, 2, 5)


def test_a_node_that_nobody_chose_is_sent_padding():
    homes = reference.expert_homes(contiguous_placement(4, 2, [0]), 0)
    ids = torch.tensor([[0, 1]] * 3)
    _, part = plan(HOST, choices_of(torch.ones(3, 2), ids, homes), homes)
    assert part.count is not None
    assert part.places is not None
    assert part.count.tolist() == [0]
    assert part.local_ids.tolist() == [[-1, -1]] * 3
    assert part.places.tolist() == [-1, -1, -1]
