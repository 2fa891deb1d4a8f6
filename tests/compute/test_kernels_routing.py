"""The gate's choice, and the plan that spreads it over expert nodes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.compute.reference import kernels as kernels
from megainfer.models.spec import RouterSpec
from megainfer.topology import contiguous_placement, placement_of


def homes_of(num_experts: int, num_nodes: int) -> kernels.Homes:
    return kernels.expert_homes(contiguous_placement(num_experts, num_nodes, [0]), 0)


def test_route_takes_the_best_of_all():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    weights, ids = kernels.route(logits, RouterSpec(4, 2, normalise=False, rounded=False))
    assert ids.tolist() == [[1, 3]]
    torch.testing.assert_close(weights[0], torch.softmax(logits[0], 0)[[1, 3]])


def test_route_normalises_over_the_chosen():
    logits = torch.randn(5, 8)
    weights, ids = kernels.route(logits, RouterSpec(8, 3, normalise=True, rounded=False))
    torch.testing.assert_close(weights, torch.softmax(logits.gather(1, ids), 1))


def test_route_rounds_to_the_model_dtype_where_the_family_does():
    logits = torch.randn(32, 8).bfloat16()
    exact, _ = kernels.route(logits, RouterSpec(8, 3, normalise=True, rounded=False))
    rounded, _ = kernels.route(logits, RouterSpec(8, 3, normalise=True, rounded=True))
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 9),
    experts=st.integers(1, 9),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_plan_holds_every_choice_once_where_it_lives(tokens, experts, data, seed):
    nodes = data.draw(st.integers(1, experts))
    top_k = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator)
    weights, ids = kernels.route(logits, RouterSpec(experts, top_k, normalise=True, rounded=False))
    parts = kernels.scatter_plan(weights, ids, homes_of(experts, nodes))

    homes = contiguous_placement(experts, nodes, [0]).homes(0)
    expected = {
        (t, *homes[int(ids[t, k])][0]): float(weights[t, k])
        for t in range(tokens)
        for k in range(top_k)
    }
    planned = {}
    for node, part in enumerate(parts):
        rows = part.rows.tolist()
        assert rows == sorted(set(rows))
        assert part.local_ids.shape == part.weights.shape == (len(rows), top_k)
        assert (part.local_ids.dtype, part.weights.dtype) == (torch.int32, torch.float32)
        for row, local_ids, row_weights in zip(
            rows, part.local_ids.tolist(), part.weights.tolist(), strict=True
        ):
            assert any(local_id >= 0 for local_id in local_ids)
            for local_id, weight in zip(local_ids, row_weights, strict=True):
                if local_id < 0:
                    assert (local_id, weight) == (-1, 0.0)
                else:
                    planned[row, node, local_id] = weight
    assert planned == expected


def test_a_node_that_nobody_chose_gets_an_empty_part():
    ids, weights = torch.tensor([[0, 1], [1, 0]]), torch.full((2, 2), 0.5)
    first, second = kernels.scatter_plan(weights, ids, homes_of(4, 2))
    assert first.rows.tolist() == [0, 1]
    assert second.rows.tolist() == []
    assert second.local_ids.shape == (0, 2)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 12), nodes=st.integers(2, 5), seed=st.integers(0, 9))
def test_a_padded_plan_is_the_plan_and_padding(tokens, nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(tokens, 2, generator=generator)
    ids = torch.randint(8, (tokens, 2), generator=generator)
    homes = homes_of(8, nodes)
    exact, padded = (
        plan(weights, ids, homes) for plan in (kernels.scatter_plan, kernels.padded_plan)
    )
    for part, longer in zip(exact, padded, strict=True):
        rows = len(part.rows)
        assert longer.count is not None
        assert longer.count.dtype == torch.int32
        assert longer.count.tolist() == [rows]
        for own, other, padding in zip(part[:3], longer[:3], (0, -1, 0), strict=True):
            assert own.dtype == other.dtype
            assert len(other) == tokens
            assert torch.equal(other[:rows], own)
            assert bool((other[rows:] == padding).all())


def test_a_node_that_is_nobodys_home_is_sent_no_padding():
    """Nobody could await it: it may be gone."""
    homes = kernels.expert_homes(placement_of(3, {0: ((0, 1), (2, 1), (0,))}), 0)
    weights, ids = torch.ones(4, 2), torch.tensor([[0, 1]] * 4)
    for plan in (kernels.scatter_plan, kernels.padded_plan):
        parts = plan(weights, ids, homes)
        assert [len(part.rows) for part in parts] == [4, 0, 4]
        assert parts[1].local_ids.shape == parts[1].weights.shape == (0, 2)
        assert (parts[1].rows.dtype, parts[1].local_ids.dtype) == (torch.int64, torch.int32)
