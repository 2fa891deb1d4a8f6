"""Experts come and go on a device that works late: nobody reads memory that isn't written, and
nobody writes over what is still read."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.experts import GpuLayerExperts
from tests.support.fake_backend import TorchWork
from tests.support.fake_device import FakeDevice
from tests.support.fake_stream import FakeEvent
from tests.support.gpu_experts import GpuExperts
from tests.support.happens_before import Race

SHAPE = ExpertsShape(2, 24, 16, 1)


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    device = FakeDevice(seed=3)
    with TorchWork(device):
        yield device


class Node:
    """Experts in slots 0 and 1; what is prepared beside them is prepared in a stream of its own."""

    def __init__(self, device: FakeDevice) -> None:
        self.device, self.moving = device, device.stream()
        self.experts = GpuExperts(SHAPE, device=device)
        self.layer: GpuLayerExperts = self.experts.layer()
        ids, weights = self.experts.choices(6, absent=False)
        self.x, self.ids, self.weights = self.experts.rows(6), ids, weights
        self.message = [device.upload(t) for t in (self.x, ids, weights)]

    def forward(self) -> Tensor:
        out = self.device.empty(self.x.shape, torch.float32)
        self.layer.forward(*([tensor] for tensor in (*self.message, out)))
        return out

    def replace(self, slot: int, expert: int) -> None:
        """What the slot holds, by another expert, while it is still computed with."""
        self.layer.forget(self.layer.take(slot))
        with self.device.on(self.moving):
            prepared = self.experts.prepare(self.layer, expert)
        self.layer.put(slot, prepared)

    def expected(self, ids: Tensor) -> Tensor:
        return self.experts.expected(self.x, ids, self.weights).float()


def test_each_batch_sees_the_slots_as_they_were_when_it_was_given(device):
    node = Node(device)
    before = node.forward()
    node.replace(0, 1)
    after = node.forward()
    told = [device.read_back(out).take() for out in (before, after)]
    for out, ids in zip(told, (node.ids, node.ids.clamp(min=1)), strict=True):
        torch.testing.assert_close(out, node.expected(ids))


def test_memory_is_used_again_no_earlier_than_it_is_free(device, monkeypatch):
    """Without the waits somebody reads half of an expert, or half of another one."""
    node = Node(device)
    node.forward()
    monkeypatch.setattr(FakeEvent, "wait", lambda event: None)
    with pytest.raises(Race):
        node.replace(0, 1)


def test_what_was_prepared_elsewhere_is_waited_for(device, monkeypatch):
    node = Node(device)
    with device.on(node.moving):
        prepared = node.experts.prepare(node.layer, 1)
    node.layer.forget(node.layer.take(0))
    monkeypatch.setattr(FakeEvent, "wait", lambda event: None)
    node.layer.put(0, prepared)
    with pytest.raises(Race):
        node.forward()


def test_what_others_are_given_waits_for_what_filled_it_and_for_no_batch(device, monkeypatch):
    node = Node(device)
    node.replace(0, 1)
    node.forward()
    computing, copying = device.streams[0], node.layer._pool.copying
    before = len(computing.queue)
    given = node.layer.copied(0)
    assert (len(computing.queue), len(copying.queue)) == (before, 1)
    device.synchronize()
    assert given.numpy().tobytes() == node.layer.memory[0].numpy().tobytes()
    node.replace(1, 0)
    monkeypatch.setattr(FakeEvent, "wait", lambda event: None)
    with pytest.raises(Race):
        node.layer.copied(1)
