"""What fills payloads and adds replies, in torch: what it leaves alone, and what it asks."""

import pytest
import torch
from torch import Tensor

from megainfer.device import HOST
from megainfer.m2n.mailbox import Part
from megainfer.m2n.packing import TORCH_PACKING, Packed
from tests.support.fake_backend import TorchWork
from tests.support.fake_device import FakeDevice
from tests.support.m2n_cluster import padded

TOKENS, HIDDEN, TOP_K = 6, 8, 2
ROWS = [1, 3, 4]


def part(rows: list[int]) -> Part:
    choices = torch.arange(len(rows) * TOP_K).view(-1, TOP_K)
    return Part(torch.tensor(rows, dtype=torch.int64), choices.int(), choices / 4)


def payload(rows: int, dtype: torch.dtype = torch.float32) -> Packed:
    return Packed(
        torch.full((rows, HIDDEN), torch.nan, dtype=dtype),
        torch.full((rows, TOP_K), 99, dtype=torch.int32),
        torch.full((rows, TOP_K), torch.nan),
        torch.full((1,), 99, dtype=torch.int32),
    )


def packed(of: Part, hidden: Tensor) -> Packed:
    into = payload(len(of.rows), hidden.dtype)
    TORCH_PACKING.pack(HOST, hidden, [of], [into])
    return into


@pytest.mark.parametrize("rows", [[], [5], ROWS, list(range(TOKENS))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_payload_says_how_many_rows_count(rows: list[int], dtype: torch.dtype) -> None:
    hidden, plain = torch.randn(TOKENS, HIDDEN).to(dtype), part(rows)
    for of in (plain, padded(plain, TOKENS)):
        into = packed(of, hidden)
        assert into.count.tolist() == [len(rows)]
        assert torch.equal(into.hidden[: len(rows)], hidden[plain.rows])
        assert torch.equal(into.local_ids, of.local_ids)
        assert torch.equal(into.weights, of.weights)


@pytest.mark.parametrize("rows", [[], [5], ROWS])
def test_nothing_is_added_of_what_is_behind_the_rows_that_count(rows: list[int]) -> None:
    reply = torch.full((TOKENS, HIDDEN), torch.nan)
    reply[: len(rows)] = torch.randn(len(rows), HIDDEN)
    out = torch.randn(TOKENS, HIDDEN)
    expected = out.clone()
    expected[rows] += reply[: len(rows)]
    TORCH_PACKING.add(HOST, [padded(part(rows), TOKENS)], [reply], out)
    assert torch.equal(out, expected)


def test_replies_are_added_one_after_the_other() -> None:
    """2**24 + 1 + 1 depends on the order of adding in float32."""
    out = torch.zeros(TOKENS, HIDDEN)
    replies = [torch.full((1, HIDDEN), value) for value in (2.0**24, 1.0, 1.0)]
    TORCH_PACKING.add(HOST, [part([2])] * 3, replies, out)
    assert out[2].unique().tolist() == [2.0**24]


def test_it_asks_the_device_for_nothing() -> None:
    """`TorchWork` reports whoever makes the host wait for a value or a shape."""
    device = FakeDevice()
    with TorchWork(device):
        of = Part(*(device.upload(tensor) for tensor in padded(part(ROWS), TOKENS)[:4]))
        hidden = device.upload(torch.ones(TOKENS, HIDDEN))
        into = Packed(*(device.upload(tensor) for tensor in payload(TOKENS)))
        out = device.upload(torch.zeros(TOKENS, HIDDEN))
        TORCH_PACKING.pack(HOST, hidden, [of], [into])
        TORCH_PACKING.add(HOST, [of], [into.hidden], out)
        assert device.read_back(out).take()[:, 0].tolist() == [0, 1, 0, 1, 1, 0]
