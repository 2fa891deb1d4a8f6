"""Each wait of a cluster on a device, left out: the race that comes of it must be found."""

from collections import Counter

import pytest
from torch import Tensor

from megainfer.attention_node.step_output import StepOutput
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_road import FakeSlots
from tests.support.fake_stream import FakeReadback
from tests.support.happens_before import Race

LOOKS = 40  # at what was read back, before it is there


def delay_readbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values come to the host after many looks, and whoever doesn't wait for them is told."""
    done, take, looks = FakeReadback.done, FakeReadback.take, Counter[FakeReadback]()

    def done_late(readback: FakeReadback) -> bool:
        looks[readback] += 1
        return looks[readback] > LOOKS and done(readback)

    def take_done(readback: FakeReadback) -> Tensor:
        if looks[readback] <= LOOKS or not done(readback):
            raise Race("the host takes what the device has yet to find")
        return take(readback)

    monkeypatch.setattr(FakeReadback, "done", done_late)
    monkeypatch.setattr(FakeReadback, "take", take_done)


def forget_messages(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(cluster.hub.expert_slots)


def forget_replies(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(cluster.hub.attention_slots)


def forget_tokens(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepOutput, "done", lambda output: True)


def forget(each: list[FakeSlots]) -> None:
    """Nobody knows what was done before what these show."""
    for slots in each:
        slots.saw = lambda slot: None  # type: ignore[method-assign]


WAITS = (forget_messages, forget_replies, forget_tokens)
