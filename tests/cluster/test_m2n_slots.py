"""The slot protocol: what a receiver sees of messages that are written, rewritten and late."""

from collections.abc import Callable
from mmap import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.slotted.inbox import Inbox
from megainfer.m2n.slotted.slots import Slots, dispatch_slots
from tests.support.m2n_cluster import SECONDS, fork, join_all

GEOMETRY = Geometry(2, 1, 2, 4, 8, 2, "float32")
NUM_SLOTS = GEOMETRY.num_attention * GEOMETRY.micro_batches
EITHER = frozenset({Kind.DISPATCH, Kind.REST})


def region() -> mmap:
    return mmap(-1, GEOMETRY.expert_region_bytes)


def inbox_of(memory: mmap, epoch: int = 0) -> Inbox:
    return Inbox(dispatch_slots(memory, GEOMETRY, 0, NUM_SLOTS), GEOMETRY, EITHER, epoch)


def sender(memory: mmap, source: int = 0) -> Slots:
    m = GEOMETRY.micro_batches
    return dispatch_slots(memory, GEOMETRY, source * m, m)


def header_only(sequence: int, epoch: int = 0, source: int = 0, micro_batch: int = 0) -> Header:
    return Header(
        kind=Kind.DISPATCH,
        dtype=1,
        layer=sequence,
        epoch=epoch,
        sequence=sequence,
        micro_batch=micro_batch,
        source=source,
        rows=0,
        top_k=2,
        hidden_size=8,
        length=0,
        sent_at=0,
    )


def put(slots: Slots, header: Header) -> None:
    slots.begin(header.micro_batch, header.sequence)
    slots.publish(header.micro_batch, header)


def sequences(inbox: Inbox) -> list[int]:
    return [header.sequence for _, header in inbox.scan()]


def test_a_message_is_seen_once_in_its_slot() -> None:
    memory = region()
    inbox = inbox_of(memory)
    assert inbox.scan() == []
    header = header_only(1, source=1, micro_batch=1)
    put(sender(memory, source=1), header)
    assert inbox.scan() == [(3, header)]
    assert inbox.scan() == []


def test_a_slot_being_written_is_left_alone() -> None:
    memory = region()
    inbox, slots = inbox_of(memory), sender(memory)
    put(slots, header_only(1))
    slots.begin(0, 2)
    assert inbox.scan() == []
    slots.publish(0, header_only(2))
    assert sequences(inbox) == [2]


def test_a_torn_read_is_noticed() -> None:
    slots = sender(region())
    put(slots, header_only(1))
    word = slots.words()[0]
    assert slots.header_bytes(0, word) == header_only(1).pack()
    slots.begin(0, 2)
    assert slots.header_bytes(0, word) is None
    slots.publish(0, header_only(2))
    assert slots.header_bytes(0, word) is None


def test_a_header_only_message_may_be_superseded() -> None:
    memory = region()
    inbox, slots = inbox_of(memory), sender(memory)
    put(slots, header_only(1))
    put(slots, header_only(2))
    assert sequences(inbox) == [2]
    assert inbox.counters.dropped == 0


def test_a_sequence_that_goes_back_is_an_error_and_not_taken() -> None:
    memory = region()
    inbox, slots = inbox_of(memory), sender(memory)
    put(slots, header_only(5))
    assert sequences(inbox) == [5]
    put(slots, header_only(4))
    with pytest.raises(ProtocolError, match="message 4 of epoch 0 from node 0, micro-batch 0, com"):
        inbox.scan()
    assert sequences(inbox) == [], "it is told once"
    put(slots, header_only(6))
    assert sequences(inbox) == [6]
    assert inbox.counters.messages_received == 2


def test_an_older_epoch_is_dropped_and_a_newer_one_parked() -> None:
    memory = region()
    inbox, slots = inbox_of(memory, epoch=3), sender(memory)
    put(slots, header_only(1, epoch=2))
    assert sequences(inbox) == []
    assert inbox.counters.dropped == 1
    put(slots, header_only(2, epoch=4))
    assert sequences(inbox) == []
    assert inbox.counters.dropped == 1
    inbox.set_epoch(4)
    assert sequences(inbox) == [2]
    assert sequences(inbox) == []


def test_a_parked_message_that_is_skipped_over_is_dropped() -> None:
    memory = region()
    inbox, slots = inbox_of(memory, epoch=3), sender(memory)
    put(slots, header_only(2, epoch=4))
    assert sequences(inbox) == []
    inbox.set_epoch(5)
    assert sequences(inbox) == []
    assert inbox.counters.dropped == 1


def test_what_replaces_a_parked_message_is_looked_at_once() -> None:
    memory = region()
    inbox, slots = inbox_of(memory, epoch=3), sender(memory)
    put(slots, header_only(2, epoch=4))
    assert sequences(inbox) == []
    put(slots, header_only(3, epoch=3))
    assert sequences(inbox) == [3]
    inbox.set_epoch(4)
    assert sequences(inbox) == []
    assert inbox.counters.dropped == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 1}, "from node 1, micro-batch 0 in the slot of node 0, micro-batch 0"),
        ({"sequence": 9}, "sequence 9 was published as 1"),
        ({"kind": Kind.REPLY}, "kind REPLY where DISPATCH or REST"),
        ({"top_k": 3}, "top_k 3, agreed was 2"),
    ],
)
def test_a_malformed_message_is_an_error_once(changes: dict[str, int], message: str) -> None:
    memory = region()
    inbox, slots = inbox_of(memory), sender(memory)
    slots.begin(0, 1)
    slots.publish(0, header_only(1)._replace(**changes))
    memory[:8] = (1 << 1).to_bytes(8, "little")  # the word says 1, whatever the header says
    with pytest.raises(ProtocolError, match=message):
        inbox.scan()
    assert inbox.scan() == []


def test_news_is_what_a_scan_would_look_at() -> None:
    memory = region()
    inbox, slots = inbox_of(memory), sender(memory)
    assert not inbox.news()
    slots.begin(1, 1)
    assert not inbox.news()
    slots.publish(1, header_only(1, micro_batch=1))
    assert inbox.news()
    inbox.scan()
    assert not inbox.news()


class Model:
    """What a receiver of one slot must deliver, said without words, headers or parking."""

    def __init__(self) -> None:
        self.epoch = 0
        self.taken = 0
        self.dropped = 0
        self.standing: tuple[int, int] | None = (
            None  # (epoch, sequence) in the slot, not dealt with
        )

    def scan(self) -> list[int]:
        if self.standing is None or self.standing[0] > self.epoch:
            return []
        epoch, sequence = self.standing
        self.standing = None
        if epoch < self.epoch:
            self.dropped += 1
            return []
        if sequence <= self.taken:
            raise ProtocolError("back")
        self.taken = sequence
        return [sequence]


def outcome(look: Callable[[], list[int]]) -> list[int] | None:
    """None where it is an error."""
    try:
        return look()
    except ProtocolError:
        return None


actions = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 3), st.integers(1, 12)),  # epoch, sequence
    st.tuples(st.just("begin"), st.just(0), st.integers(1, 12)),
    st.tuples(st.just("scan"), st.just(0), st.just(0)),
    st.tuples(st.just("epoch"), st.integers(0, 3), st.just(0)),
)


@given(st.lists(actions, max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_order_of_writing_and_looking(steps: list[tuple[str, int, int]]) -> None:
    memory = region()
    inbox, slots, model = inbox_of(memory), sender(memory), Model()
    used = set()
    for action, epoch, sequence in steps:
        if action == "put" and sequence not in used:  # no sender uses a number twice
            put(slots, header_only(sequence, epoch))
            used.add(sequence)
            model.standing = (epoch, sequence)
        elif action == "begin":
            slots.begin(0, sequence)
            model.standing = None
        elif action == "epoch" and epoch > model.epoch:
            inbox.set_epoch(epoch)
            model.epoch = epoch
        elif action == "scan":
            assert outcome(lambda: sequences(inbox)) == outcome(model.scan)
            assert inbox.counters.dropped == model.dropped


def write_many(memory: mmap, count: int) -> None:
    slots = sender(memory)
    for sequence in range(1, count + 1):
        put(slots, header_only(sequence))


def test_reading_while_another_process_writes() -> None:
    """A header-only slot is rewritten as fast as can be; no reader ever gets a mixture."""
    memory, count = region(), 20_000
    inbox = inbox_of(memory)
    writer = fork(write_many, memory, count)
    seen: list[int] = []
    while not seen or seen[-1] < count:
        for _, header in inbox.scan():
            assert header == header_only(header.sequence)
            seen.append(header.sequence)
        assert writer.is_alive() or writer.exitcode == 0
    assert seen == sorted(set(seen))
    writer.join(SECONDS)
    join_all([writer])
