"""Rows into messages and out of replies, interpreted."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from megainfer.compute.gpu.kernels.routing.packing import KernelPacking, Payload
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST, HostDevice
from megainfer.m2n.mailbox import Part
from megainfer.topology import contiguous_placement
from tests.support.gpu_plans import drawn, planned

PACKING = KernelPacking()
CAPACITY, TOP_K = 12, 3
SHAPES = [(1, 1, 1), (5, 40, 2), (7, 257, 3), (9, 1100, 1), (12, 16, 5)]


def parts_of(tokens: int, num_nodes: int) -> tuple[Part, ...]:
    return planned(contiguous_placement(9, num_nodes, [0]), *drawn(tokens, 9, TOP_K))


def count_of(part: Part) -> int:
    return len(part.rows) if part.count is None else int(part.count)


def slot(size: int, dtype: torch.dtype) -> Payload:
    """As a slot holds what was there."""
    return (
        torch.full((CAPACITY, size), 7.0, dtype=dtype),
        torch.full((CAPACITY, TOP_K), 7, dtype=torch.int32),
        torch.full((CAPACITY, TOP_K), 7.0),
        torch.full((2,), 7, dtype=torch.int32),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "size", "num_nodes"), SHAPES)
def test_a_payload_is_the_rows_of_its_part(tokens, size, num_nodes, dtype):
    hidden, parts = torch.randn(tokens, size).to(dtype), parts_of(tokens, num_nodes)
    slots = [slot(size, dtype) for _ in parts]
    PACKING.pack(HOST, hidden, parts, slots)
    for part, (rows, local_ids, weights, counts) in zip(parts, slots, strict=True):
        count = count_of(part)
        assert counts.tolist() == [count, 7]
        assert torch.equal(rows[:count], hidden[part.rows[:count]])
        assert torch.equal(local_ids[:tokens], part.local_ids)
        assert torch.equal(weights[:tokens], part.weights)
        for filled, untouched in ((rows, count), (local_ids, tokens), (weights, tokens)):
            assert (filled[untouched:] == 7).all()


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
    PACKING.add(HOST, parts, replies, x)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("tokens", [1, 2])
def test_parts_that_kernels_did_not_plan_are_refused(tokens):
    """Fewer rows than tokens, or padding without places: it would take them for all rows."""
    ids, weights = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    homes = reference.expert_homes(contiguous_placement(9, 2, [0]), 0)
    part = reference.padded_plan(weights, ids, homes)[0]
    part = part if tokens == 2 else Part(*(tensor[:1] for tensor in part[:3]))
    with pytest.raises(AssertionError, match=r"no plan|no places"):
        PACKING.add(HOST, (part,), (torch.ones(2, 4),), torch.zeros(2, 4))


class Noting(HostDevice):
    """Notes what the last kernel was said to use."""

    def launch(
        self,
        work: Callable[[], object],
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        *,
        name: str,
    ) -> None:
        self.reads, self.writes = {id(t) for t in reads}, {id(t) for t in writes}
        work()


def ids_of(*tensors: Tensor | None) -> set[int]:
    return {id(tensor) for tensor in tensors if tensor is not None}


def test_the_device_is_told_what_kernels_use():
    """All that is behind tuples, too: who proves the order of streams knows no more."""
    device, parts, x = Noting(), parts_of(3, 2), torch.zeros(3, 4)
    replies, slots = [torch.ones(3, 4)] * 2, [slot(4, torch.float32) for _ in parts]
    PACKING.pack(device, x, parts, slots)
    assert device.reads >= ids_of(x, *parts[0], *parts[1])
    assert device.writes == ids_of(*slots[0], *slots[1])
    PACKING.add(device, parts, replies, x)
    assert device.reads >= ids_of(x, parts[0].places, parts[1].places, *replies)
    assert device.writes == ids_of(x)
