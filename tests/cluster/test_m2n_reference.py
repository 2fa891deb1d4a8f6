"""The oracle itself, against numbers worked out by hand."""

import torch

from megainfer.m2n.reference import ExpertChoices, make_parts, marked_tokens, moe, moe_without_nodes

HOMES = ((0, 0), (1, 0), (1, 1))  # expert 0 on node 0, experts 1 and 2 on node 1


def expert(node: int, local: int, token: torch.Tensor) -> torch.Tensor:
    return token * 10**node + local


def test_by_hand() -> None:
    routing = ExpertChoices(
        torch.tensor([[0, 2], [1, 2]]), torch.tensor([[0.5, 0.5], [0.25, 1.0]]), HOMES
    )
    hidden = torch.tensor([[2.0], [4.0]])
    to_0, to_1 = make_parts(routing, 2)
    assert to_0.rows.tolist() == [0]
    assert to_0.local_ids.tolist() == [[0, -1]]
    assert to_0.weights.tolist() == [[0.5, 0.0]]
    assert to_1.rows.tolist() == [0, 1]
    assert to_1.local_ids.tolist() == [[-1, 1], [0, 1]]
    assert to_1.weights.tolist() == [[0.0, 0.5], [0.25, 1.0]]
    # token 0: 0.5 * 2 + 0.5 * (20 + 1); token 1: 0.25 * 40 + 1.0 * (40 + 1)
    expected = torch.tensor([[11.5], [51.0]])
    assert torch.equal(moe(hidden, routing, 2, expert), expected)
    assert torch.equal(moe_without_nodes(hidden, routing, expert), expected)


def test_marked_tokens_differ_and_are_exact_in_bfloat16() -> None:
    tokens = torch.cat([marked_tokens(300, 8, source, torch.float32) for source in range(3)])
    assert len(torch.unique(tokens, dim=0)) == 900
    assert torch.equal(marked_tokens(300, 8, 2, torch.bfloat16).float(), tokens[600:])
