"""Ports against peers that break the rules: messages written into their slots by hand."""

from collections.abc import Callable
from functools import partial
from mmap import mmap
from typing import Any

import pytest
import torch

from megainfer.device import HOST
from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.ipc.publisher import Publisher
from megainfer.m2n.ipc.slots import slots_at_attention
from megainfer.m2n.local import LocalHub
from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.mail import Memory
from megainfer.m2n.slotted.opening import MOVERS
from megainfer.m2n.slotted.slots import Slots, being_written, dispatch_slots, reply_slots
from tests.support.m2n_cluster import IMPLEMENTATIONS
from tests.support.twin_hub import TwinHub
from tests.support.twin_road import TWIN, TwinWords

GEOMETRY = Geometry(1, 2, 1, capacity=4, hidden_size=8, top_k=2, dtype="float32")


class Wire:
    """Nobody is there to hear."""

    def ring(self, peer: int) -> None: ...
    def ring_self(self) -> None: ...
    def lost_peers(self) -> frozenset[int]:
        return frozenset()

    def wait(self, *_: Any) -> None: ...
    def close(self) -> None: ...


def expert_port(index: int, own: mmap, region: mmap, mover: str) -> SlotExpertPort:
    seat = Seat(GEOMETRY, index, 0)
    return SlotExpertPort(seat, MOVERS[mover].expert(seat, Memory(own, [region])), Wire())


def put(slots: Slots, slot: int, header: Header) -> None:
    slots.begin(slot, header.sequence)
    slots.publish(slot, header)


def part_of(rows: int) -> Part:
    choices = torch.zeros(rows, 2)
    return Part(torch.arange(rows), choices.to(torch.int32), choices)


Put = Callable[[int, Header], None]
"""A message into one of an attention node's reply slots."""


def host_attention(mover: str) -> tuple[SlotAttentionPort, Put]:
    replies = mmap(-1, GEOMETRY.attention_region_bytes)
    regions = [mmap(-1, GEOMETRY.expert_region_bytes) for _ in range(2)]
    seat = Seat(GEOMETRY, 0, 0)
    mail = MOVERS[mover].attention(seat, Memory(replies, regions))
    slots = reply_slots(replies, GEOMETRY, 0, 2)
    return SlotAttentionPort(seat, mail, Wire()), partial(put, slots)


def device_attention() -> tuple[SlotAttentionPort, Put]:
    hub = TwinHub(GEOMETRY)
    port, node = hub.attention_port(0), hub._attention[0]

    def put_reply(slot: int, header: Header) -> None:
        seat = Seat(GEOMETRY.on_devices, slot)
        publisher = Publisher(HOST, TwinWords())
        put(slots_at_attention(seat, publisher, node.seen_by_others(0)), 0, header)

    return port, put_reply


@pytest.fixture(params=[*IMPLEMENTATIONS, TWIN])
def attending(request: pytest.FixtureRequest) -> tuple[SlotAttentionPort, Put]:
    """An attention node's port, and what its peers can do to it."""
    return device_attention() if request.param == TWIN else host_attention(request.param)


GOOD = Header(
    Kind.REPLY,
    dtype=1,
    epoch=0,
    sequence=1,
    layer=6,
    micro_batch=0,
    source=0,
    rows=3,
    top_k=2,
    hidden_size=8,
    length=128,
    sent_at=0,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": 2}, "message 2 of layer 6, in flight is message 1 of layer 6"),
        ({"layer": 7}, "message 1 of layer 7, in flight is message 1 of layer 6"),
        ({"rows": 2, "length": 64}, "replies with 2 rows, it was sent 3"),
        ({"source": 1}, "expert node 1, micro-batch 0 answers where no reply is due"),
        ({"kind": Kind.DISPATCH, "rows": 0, "length": 0}, "kind DISPATCH where ERROR or REPLY"),
        ({"hidden_size": 9}, "hidden_size 9, agreed was 8"),
    ],
)
def test_a_reply_that_fits_nothing(
    attending: tuple[SlotAttentionPort, Put], changes: dict[str, int], message: str
) -> None:
    attention, put_reply = attending
    attention.dispatch(0, 6, torch.zeros(3, 8), [part_of(3), part_of(0)])
    forged = GOOD._replace(**changes)
    put_reply(forged.source, forged)
    with pytest.raises(ProtocolError, match=message):
        attention.poll()


def test_a_reply_to_nothing(attending: tuple[SlotAttentionPort, Put]) -> None:
    attention, put_reply = attending
    put_reply(0, GOOD)
    with pytest.raises(ProtocolError, match="answers where no reply is due"):
        attention.poll()


@pytest.mark.parametrize("mover", IMPLEMENTATIONS)
def test_a_slot_rewritten_before_the_reply(mover: str) -> None:
    own, region = mmap(-1, GEOMETRY.expert_region_bytes), mmap(-1, GEOMETRY.attention_region_bytes)
    port = expert_port(0, own, region, mover)
    slots = dispatch_slots(own, GEOMETRY, 0, 1)
    header = GOOD._replace(kind=Kind.DISPATCH, rows=1, length=GEOMETRY.dispatch_bytes(1))
    put(slots, 0, header)
    assert len(port.receive()) == 1
    put(slots, 0, header._replace(sequence=2))
    with pytest.raises(
        ProtocolError,
        match="node 0 rewrote the slot of micro-batch 0 before the reply to its message 1",
    ):
        port.receive()


@pytest.mark.parametrize("mover", IMPLEMENTATIONS)
def test_a_reply_is_being_written_from_the_moment_its_buffer_is_given(mover: str) -> None:
    own, region = mmap(-1, GEOMETRY.expert_region_bytes), mmap(-1, GEOMETRY.attention_region_bytes)
    port = expert_port(1, own, region, mover)
    header = GOOD._replace(kind=Kind.DISPATCH, rows=1, length=GEOMETRY.dispatch_bytes(1))
    put(dispatch_slots(own, GEOMETRY, 0, 1), 0, header)
    (message,) = port.receive()
    assert isinstance(message, Dispatch)
    replies = reply_slots(region, GEOMETRY, 0, 2)
    assert not being_written(replies.words()[1])
    port.reply_buffer(message).fill_(1.0)
    assert being_written(replies.words()[1])
    port.reply(message)
    assert replies.words() == [0, 1 << 1]

    standing = bytes(region)
    port.reply_buffer(message).fill_(2.0)  # answered already: memory that nobody reads
    port.reply(message)
    assert bytes(region) == standing


@pytest.mark.parametrize("kind", [LocalHub, TwinHub])
def test_layers_and_rows_come_from_the_dispatch(kind: type[LocalHub | TwinHub]) -> None:
    """An expert node that answers with other rows than it got is caught by the attention node."""
    hub = kind(Geometry(1, 1, 1, 4, 8, 2, "float32"))
    attention, expert = hub.attention_port(0), hub.expert_port(0)
    attention.dispatch(0, 0, torch.zeros(2, 8), [part_of(2)])
    (message,) = expert.receive()
    assert isinstance(message, Dispatch)
    expert.reply(message._replace(hidden=message.hidden[:1]))
    with pytest.raises(ProtocolError, match="replies with 1 rows, it was sent 2"):
        attention.poll()


def test_a_devices_slot_rewritten_before_the_reply() -> None:
    hub = TwinHub(Geometry(1, 1, 1, 4, 8, 2, "float32"))
    attention, expert = hub.attention_port(0), hub.expert_port(0)
    attention.dispatch(0, 0, torch.zeros(2, 8), [part_of(2)])
    assert len(expert.receive()) == 1
    attention._due.clear()  # it forgets what it awaits
    attention.rest(0)
    with pytest.raises(
        ProtocolError,
        match="node 0 rewrote the slot of micro-batch 0 before the reply to its message 1",
    ):
        expert.receive()
