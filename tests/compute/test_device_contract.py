"""What every device promises, and how values get to one through pinned memory."""

from threading import Thread

import pytest
import torch

from megainfer.device import HOST
from megainfer.device.staging import Staging
from tests.support.devices import DEVICES, LATE, opened
from tests.support.fake_device import FakeDevice
from tests.support.fake_stream import FakeEvent

VALUES = [
    torch.arange(7),
    torch.tensor(3.5),
    torch.empty(0, 4),
    torch.arange(12, dtype=torch.bfloat16).view(3, 4).mT,
    torch.arange(700_000, dtype=torch.float32),  # more than a step uploads
]


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("values", VALUES, ids=lambda v: f"{v.dtype}-{tuple(v.shape)}")
def test_what_goes_up_comes_back(kind, values):
    kept = values.clone()
    with opened(kind) as device:
        there = device.upload(values)
        assert there.device == device.torch
        back = device.read_back(there).take()
    assert (back.device.type, back.dtype) == ("cpu", kept.dtype)
    assert torch.equal(back, kept)


@pytest.mark.parametrize("kind", LATE)
def test_a_readback_has_the_values_of_its_moment(kind):
    with opened(kind) as device:
        numbers = device.upload(torch.arange(4))
        readback = device.read_back(numbers)
        numbers.fill_(9)
        assert readback.take().tolist() == [0, 1, 2, 3]
        assert readback.done()
        assert device.read_back(numbers).take().tolist() == [9] * 4


@pytest.mark.parametrize("kind", DEVICES)
def test_events_order_streams_and_tell_what_is_done(kind):
    with opened(kind) as device:
        assert device.event().done()
        first, second = device.stream(), device.stream()
        uploaded = device.event()
        numbers = device.upload(torch.ones(1000))
        uploaded.record()
        with device.on(first):
            uploaded.wait()
            numbers.mul_(3)
            written = device.event(timed=True)
            written.record()
        with device.on(second):
            written.wait()
            numbers.add_(1)
            ended = device.event(timed=True)
            ended.record()
        ended.synchronize()
        assert ended.done()
        assert written.done()
        assert ended.seconds_since(written) >= 0
        with device.on(second):
            assert device.read_back(numbers).take().tolist() == [4.0] * 1000


PIECE = 64


def staging(device: FakeDevice, taken: list[int]) -> Staging:
    """With two pieces of 16 floats."""

    def pinned(size: int) -> torch.Tensor:
        taken.append(size)
        return torch.empty(size, dtype=torch.uint8)

    return Staging(device, pinned, PIECE, pieces=2)


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_pieces_of_pinned_memory_carry_tensors_of_any_size(rows, dtype):
    late, taken = FakeDevice(), list[int]()
    through = staging(late, taken)
    values = torch.arange(3 * rows).remainder(120).to(dtype).view(rows, 3)
    for more in range(2):
        to = late.empty(values.shape, dtype)
        through.upload(values + more, to)
        assert torch.equal(late.read_back(to).take(), values + more)
    assert len(taken) <= 2


def test_a_piece_that_nobody_waited_for_would_be_written_over(monkeypatch):
    """The proof that the test above can fail."""
    monkeypatch.setattr(FakeEvent, "synchronize", lambda event: None)
    late = FakeDevice()
    to = late.empty((100,), torch.float32)
    staging(late, []).upload(torch.arange(100.0), to)
    late.synchronize()
    assert not torch.equal(to, torch.arange(100.0))


def test_several_threads_share_the_pieces():
    """Their copies go to the stream in whole pieces, so that none is mixed with another's."""
    through = Staging(HOST, lambda size: torch.empty(size, dtype=torch.uint8), PIECE, pieces=2)
    outs = [torch.empty(10_000) for _ in range(4)]

    def upload(number: int) -> None:
        through.upload(torch.full((10_000,), float(number)), outs[number])

    threads = [Thread(target=upload, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, out in enumerate(outs):
        assert torch.equal(out, torch.full((10_000,), float(number)))
