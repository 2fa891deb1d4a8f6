"""Slots that a device publishes: what a receiver sees of messages that are begun, late and torn."""

from collections.abc import Sequence
from mmap import mmap

import pytest
import torch

from megainfer.device import HOST
from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.ipc.publisher import Place, Publisher
from megainfer.m2n.ipc.slots import PeerSlots, own_messages, own_replies, slots_at_expert
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.inbox import Inbox, Looking
from megainfer.m2n.slotted.mail import TO_ATTENTION, TO_EXPERT, Newcomer
from megainfer.m2n.slotted.native_inbox import NativeInbox
from megainfer.m2n.slotted.payloads import StridedPayloads
from tests.support.m2n_cluster import IMPLEMENTATIONS
from tests.support.twin_road import TwinWords

GEOMETRY = Geometry(2, 1, 2, 4, 8, 2, "float32", "device")
NUM_SLOTS = GEOMETRY.num_attention * GEOMETRY.micro_batches


class LateWords(TwinWords):
    """A device that stores nothing before it is told to go on."""

    def __init__(self) -> None:
        self.given: list[tuple[Place, int]] = []

    def store(self, words: Sequence[tuple[Place, int]]) -> None:
        self.given.extend(words)

    def go_on(self) -> None:
        """Store the next word."""
        super().store([self.given.pop(0)])


class Expert:
    """An expert node's slots, and those in them of an attention node whose device is late."""

    def __init__(self, mover: str) -> None:
        self.region = mmap(-1, GEOMETRY.expert_region_bytes)
        room = GEOMETRY.expert_payloads
        payloads = StridedPayloads(torch.zeros(room.bytes, dtype=torch.uint8), room.stride)
        slots = own_messages(Seat(GEOMETRY, 0), self.region, payloads, HOST)
        if mover == "native":
            self.inbox: Looking = NativeInbox(slots, Seat(GEOMETRY, 0), self.region, False)
            self.inbox.watch(Newcomer(1, self.region))
        else:
            self.inbox = Inbox(slots, GEOMETRY, TO_EXPERT, 0)
        self.words = LateWords()
        newcomer = Newcomer(0, self.region, payloads=payloads)
        publisher = Publisher(HOST, self.words)
        self.sender = slots_at_expert(Seat(GEOMETRY, 1), publisher, newcomer)

    def send(self, sequence: int, epoch: int = 0, **changes: int) -> None:
        """The host's part of it; the device is yet to go on."""
        begin(self.sender, sequence, epoch, **changes)

    def sequences(self) -> list[int]:
        return [header.sequence for _, header in self.inbox.scan()]


@pytest.fixture(params=IMPLEMENTATIONS)
def expert(request: pytest.FixtureRequest) -> Expert:
    return Expert(request.param)


def begin(slots: PeerSlots, sequence: int, epoch: int = 0, **changes: int) -> None:
    header = Header(
        kind=Kind.DISPATCH,
        dtype=1,
        layer=sequence,
        epoch=epoch,
        sequence=sequence,
        micro_batch=1,
        source=1,
        rows=0,
        top_k=2,
        hidden_size=8,
        length=0,
        sent_at=0,
    )
    slots.begin(1, sequence)
    slots.publish(1, header._replace(**changes))


def test_a_message_is_seen_when_the_device_has_published_it(expert: Expert) -> None:
    expert.send(1)
    assert expert.sequences() == []
    assert not expert.inbox.news()
    assert expert.inbox.awaits()
    expert.words.go_on()
    assert expert.inbox.news()
    assert not expert.inbox.awaits()
    assert [slot for slot, _ in expert.inbox.scan()] == [3]
    assert expert.sequences() == []


def test_nothing_is_awaited_of_nobody(expert: Expert) -> None:
    assert not expert.inbox.awaits()
    assert not expert.inbox.news()


def test_the_word_of_a_superseded_message_shows_nothing(expert: Expert) -> None:
    expert.send(1)
    expert.send(2)
    expert.words.go_on()
    assert expert.sequences() == []
    assert not expert.inbox.news()
    assert expert.inbox.awaits()
    expert.words.go_on()
    assert expert.sequences() == [2]
    assert expert.inbox.counters.dropped == 0


def test_a_message_that_stood_is_gone_once_the_next_is_begun(expert: Expert) -> None:
    expert.send(1)
    expert.words.go_on()
    expert.send(2)
    assert expert.sequences() == []
    expert.words.go_on()
    assert expert.sequences() == [2]


def test_a_torn_read_is_noticed(expert: Expert) -> None:
    expert.send(1)
    expert.words.go_on()
    own = own_messages(Seat(GEOMETRY, 0), expert.region, expert.sender._payloads, HOST)
    word = own.words()[3]
    assert own.header_bytes(3, word) is not None
    expert.sender.begin(1, 2)  # its header may be half written from here on
    assert own.header_bytes(3, word) is None


def test_what_an_ended_epoch_has_announced_is_not_awaited(expert: Expert) -> None:
    expert.send(1)
    assert expert.inbox.awaits()
    expert.inbox.set_epoch(1)
    assert not expert.inbox.awaits()  # its sender may have died
    expert.words.go_on()
    assert expert.sequences() == []
    assert expert.inbox.counters.dropped == 1


def test_a_message_of_a_newer_epoch_is_awaited_and_parked(expert: Expert) -> None:
    expert.send(1, epoch=1)
    assert expert.inbox.awaits()
    expert.words.go_on()
    assert expert.sequences() == []
    assert not expert.inbox.news()
    expert.inbox.set_epoch(1)
    assert expert.sequences() == [1]


def test_a_word_that_never_was_begun_is_left_alone(expert: Expert) -> None:
    """A peer that stores words at will shows nothing, unless it shows a header, too."""
    for forged in (2, 3, 2**63, 2**64 - 1):
        expert.words.store([(expert.sender._places[1], forged)])
        expert.words.go_on()
        assert expert.sequences() == []
    expert.send(5, layer=9)
    expert.words.go_on()
    assert expert.sequences() == [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": Kind.REPLY}, "kind REPLY where DISPATCH or REST"),
        ({"rows": 5, "length": GEOMETRY.dispatch_bytes(5)}, "rows 5, the most is 4"),
        ({"rows": 1, "length": GEOMETRY.dispatch_bytes(1) - 64}, "length 192, agreed was 256"),
        ({"source": 0}, "from node 0, micro-batch 1 in the slot of node 1"),
        ({"sequence": 3}, "sequence 3 was published as 1"),
    ],
)
def test_forged_headers_are_refused(expert: Expert, changes: dict[str, int], message: str) -> None:
    header = {"kind": Kind.DISPATCH, "sequence": 1} | changes
    expert.sender.begin(1, 1)
    blank = Header(1, 1, 0, 0, 1, 1, 1, 0, 2, 8, 0, 0)
    expert.sender._write_header(1, blank._replace(**header))
    expert.words.store([(expert.sender._places[1], 2)])
    expert.words.go_on()
    with pytest.raises(ProtocolError, match=message):
        expert.inbox.scan()


def test_texts_lie_in_the_hosts_memory() -> None:
    region = mmap(-1, GEOMETRY.attention_region_bytes)
    room = GEOMETRY.attention_payloads
    payloads = StridedPayloads(torch.zeros(room.bytes, dtype=torch.uint8), room.stride)
    slots = own_replies(Seat(GEOMETRY, 0), region, payloads, HOST)
    Inbox(slots, GEOMETRY, TO_ATTENTION, 0)
    slots.write_text(1, b"x" * GEOMETRY.error_room)
    assert slots.read_text(1, GEOMETRY.error_room) == "x" * 1024
    assert not payloads.tensor(1, 0, torch.uint8, (1, room.stride)).any()
