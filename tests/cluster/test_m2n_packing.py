"""What fills payloads and adds replies, in torch: what it leaves alone, and what it asks."""

import pytest
import torch
from torch import Tensor

from megainfer.device import HOST
from megainfer.errors import ProtocolError
from megainfer.m2n.dist.buffers import Buffer
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Part
from megainfer.m2n.packing import TORCH_PACKING, Packed, Packing
from megainfer.m2n.slotted.host_packing import CHECKED_PACKING, NativePacking
from megainfer.m2n.slotted.native_library import is_built
from megainfer.m2n.slotted.slots import torch_dtype
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


GEOMETRIES = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
BUILT = pytest.mark.skipif(not is_built(), reason="M2N is not built")


def host_packings(dtype: str) -> tuple[Geometry, list[Packing]]:
    geometry = Geometry(1, 2, 1, TOKENS, HIDDEN, TOP_K, dtype).on_devices
    return geometry, [NativePacking(geometry), CHECKED_PACKING]


def buffers(geometry: Geometry, count: int) -> list[Buffer]:
    return [Buffer(geometry, geometry.dispatch_bytes, HOST) for _ in range(count)]


@BUILT
@GEOMETRIES
def test_on_the_host_a_call_of_cpp_packs_the_bytes_of_torch(dtype: str) -> None:
    geometry, packings = host_packings(dtype)
    hidden = torch.randn(TOKENS, HIDDEN).to(torch_dtype(geometry))
    parts = [part(ROWS), part([5])]
    packed_by = []
    for packing in packings:
        into = buffers(geometry, len(parts))
        views = [b.views.packed(0, len(p.rows)) for b, p in zip(into, parts, strict=True)]
        packing.pack(HOST, hidden, parts, views)
        packed_by.append([b.sent_of(TOKENS).tolist() for b in into])
    assert packed_by[0] == packed_by[1]


@BUILT
@GEOMETRIES
@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_on_the_host_a_call_of_cpp_adds_what_torch_does(dtype: str, sum_dtype: torch.dtype) -> None:
    geometry, packings = host_packings(dtype)
    parts = [part(ROWS), part([3])]
    replies = [torch.randn(len(p.rows), HIDDEN).to(torch_dtype(geometry)) for p in parts]
    before = torch.randn(TOKENS, HIDDEN).to(sum_dtype)
    sums = []
    for packing in packings:
        sums.append(before.clone())
        packing.add(HOST, parts, replies, sums[-1])
    assert torch.equal(sums[0], sums[1])
    assert not torch.equal(sums[0], before)


@BUILT
@pytest.mark.parametrize("row", [-1, TOKENS])
def test_on_the_host_a_row_that_is_not_there_is_refused_and_nothing_written(row: int) -> None:
    geometry, packings = host_packings("float32")
    tokens = torch.randn(TOKENS, HIDDEN)
    for packing in packings:
        out, (buffer, other) = tokens.clone(), buffers(geometry, 2)
        parts = [part([1]), part([row])]
        views = [each.views.packed(0, 1) for each in (buffer, other)]
        with pytest.raises(ProtocolError, match="names a row outside the 6 tokens"):
            packing.pack(HOST, tokens, parts, views)
        with pytest.raises(ProtocolError, match="names a row outside the 6 tokens"):
            packing.add(HOST, parts, [torch.ones(1, HIDDEN)] * 2, out)
        assert torch.equal(out, tokens)
        assert not buffer.sent_of(TOKENS).any()
