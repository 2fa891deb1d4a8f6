"""Rows into messages and out of replies, interpreted."""

import pytest
import torch

from megainfer.compute.gpu.kernels.messages import Message, combine, pack
from megainfer.compute.gpu.kernels.packing import plan
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST
from megainfer.m2n.mailbox import Part
from megainfer.topology import contiguous_placement
from tests.interpreted.test_packing import choices_of, drawn

CAPACITY, TOP_K = 12, 3
SHAPES = [(1, 1, 1), (5, 40, 2), (7, 257, 3), (9, 1100, 1), (12, 16, 5)]


def parts_of(tokens: int, num_nodes: int) -> tuple[Part, ...]:
    homes = reference.expert_homes(contiguous_placement(9, num_nodes, [0]), 0)
    return plan(HOST, choices_of(*drawn(tokens, 9, TOP_K), homes), homes)


def count_of(part: Part) -> int:
    return len(part.rows) if part.count is None else int(part.count)


def slot(size: int, dtype: torch.dtype) -> Message:
    """As a slot holds what was there."""
    return Message(
        torch.full((CAPACITY, size), 7.0, dtype=dtype),
        torch.full((CAPACITY, TOP_K), 7, dtype=torch.int32),
        torch.full((CAPACITY, TOP_K), 7.0),
        torch.full((2,), 7, dtype=torch.int32),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "size", "num_nodes"), SHAPES)
def test_a_message_is_the_rows_of_its_part(tokens, size, num_nodes, dtype):
    hidden, parts = torch.randn(tokens, size).to(dtype), parts_of(tokens, num_nodes)
    slots = [slot(size, dtype) for _ in parts]
    pack(HOST, hidden, parts, slots)
    for part, message in zip(parts, slots, strict=True):
        count = count_of(part)
        assert message.count.tolist() == [count, 7]
        assert torch.equal(message.hidden[:count], hidden[part.rows[:count]])
        assert (message.hidden[count:] == 7).all()
        assert torch.equal(message.local_ids[:tokens], part.local_ids)
        assert torch.equal(message.weights[:tokens], part.weights)
        assert (message.local_ids[tokens:] == 7).all()
        assert (message.weights[tokens:] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "size", "num_nodes"), SHAPES)
def test_replies_are_added_in_the_order_of_nodes(tokens, size, num_nodes, dtype):
    x, parts = torch.randn(tokens, size).to(dtype), parts_of(tokens, num_nodes)
    replies = [torch.randn(tokens, size).to(dtype) for _ in parts]
    expected = x.clone()
    for part, reply in zip(parts, replies, strict=True):
        count = count_of(part)
        reply[count:] = torch.nan  # nobody may read behind the rows
        expected.index_add_(0, part.rows[:count], reply[:count])
    combine(HOST, x, parts, replies)
    assert torch.equal(x, expected)


def test_nobody_is_sent_nothing():
    x = torch.randn(2, 3)
    before = x.clone()
    pack(HOST, x, (), ())
    combine(HOST, x, (), ())
    assert torch.equal(x, before)


def test_a_part_of_the_hosts_is_refused():
    """It has no places, but not all rows either."""
    part = Part(torch.tensor([1]), torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1))
    with pytest.raises(AssertionError, match="not made by kernels"):
        combine(HOST, torch.zeros(2, 4), (part,), (torch.ones(1, 4),))
