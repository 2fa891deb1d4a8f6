"""What C++ does with messages, beside what Python does: the same checks, bytes and wake-ups."""

import random
from mmap import mmap

import pytest
import torch

from megainfer.errors import ConfigError, ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import PortOptions, Road, Seat, open_attention_port, open_expert_port
from megainfer.m2n.slotted import native_library
from megainfer.m2n.slotted.mail import Memory
from megainfer.m2n.slotted.opening import MOVERS
from megainfer.m2n.slotted.slots import dispatch_slots
from megainfer.native.library import load_library
from tests.support.m2n_cluster import (
    IMPLEMENTATIONS,
    SECONDS,
    fork,
    fresh_token,
    join_all,
    local_cluster,
)

GEOMETRY = Geometry(2, 2, 2, capacity=6, hidden_size=5, top_k=3, dtype="float32")
GOOD = Header(
    Kind.DISPATCH,
    dtype=1,
    layer=3,
    epoch=0,
    sequence=1,
    micro_batch=1,
    source=1,
    rows=2,
    top_k=3,
    hidden_size=5,
    length=GEOMETRY.dispatch_bytes(2),
    sent_at=0,
)
SLOT = 3  # of attention node 1's micro-batch 1
built = pytest.mark.skipif(not native_library.is_built(), reason="M2N is not built")


def refusal(data: bytes, mover: str) -> str | None:
    """What an expert node says of a message with this header; None if it takes it."""
    own = mmap(-1, GEOMETRY.expert_region_bytes)
    regions = [mmap(-1, GEOMETRY.attention_region_bytes) for _ in range(2)]
    slots = dispatch_slots(own, GEOMETRY, 0, 4)
    slots.begin(SLOT, 1)
    slots.publish(SLOT, GOOD)
    start = SLOT * GEOMETRY.dispatch_slot_bytes + 64
    own[start : start + 64] = data
    mail = MOVERS[mover].expert(Seat(GEOMETRY, 0, 0), Memory(own, regions))
    try:
        found = mail.scan(None)
    except ProtocolError as error:
        assert mail.scan(None) == []  # once
        return str(error)
    header = Header.unpack(data)
    assert found == ([(SLOT, header)] if header.epoch == 0 else [])  # a newer one is parked
    return None


@built
@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 0},
        {"kind": 5},
        {"kind": Kind.REPLY, "length": GEOMETRY.reply_bytes(2)},
        {"kind": Kind.ERROR},
        {"kind": Kind.REST},
        {"kind": Kind.REST, "rows": 0},
        {"dtype": 2},
        {"sequence": 2},
        {"sequence": 2**63 + 1},
        {"micro_batch": 0},
        {"micro_batch": 2},
        {"source": 0},
        {"source": 2},
        {"rows": 4},
        {"rows": 7, "length": GEOMETRY.dispatch_bytes(7)},
        {"rows": 2**32 - 1},
        {"top_k": 2},
        {"hidden_size": 6},
        {"length": 0},
        {"length": 2**64 - 64},
    ],
)
def test_a_corrupted_header_is_refused_in_the_same_words(changes: dict[str, int]) -> None:
    data = GOOD._replace(**changes).pack()
    assert refusal(data, "plain") is not None
    assert refusal(data, "native") == refusal(data, "plain")


@built
@pytest.mark.parametrize(("offset", "name"), [(0, "begins with"), (4, "version")])
def test_another_language_is_refused_in_the_same_words(offset: int, name: str) -> None:
    data = bytearray(GOOD.pack())
    data[offset] ^= 0x20
    found = refusal(bytes(data), "native")
    assert found is not None
    assert name in found
    assert found == refusal(bytes(data), "plain")


@built
def test_any_bit_of_a_header_is_judged_alike() -> None:
    for bit in range(8 * 64):
        data = bytearray(GOOD.pack())
        data[bit // 8] ^= 1 << bit % 8
        assert refusal(bytes(data), "native") == refusal(bytes(data), "plain"), bit


@built
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_both_write_the_same_bytes(dtype: str) -> None:
    geometry = Geometry(1, 2, 1, capacity=6, hidden_size=5, top_k=3, dtype=dtype)
    written = []
    for mover in ("plain", "native"):
        regions = [mmap(-1, geometry.expert_region_bytes) for _ in range(2)]
        memory = Memory(mmap(-1, geometry.attention_region_bytes), regions)
        mail = MOVERS[mover].attention(Seat(geometry, 0, 7), memory)
        hidden = torch.arange(30).view(6, 5).to(getattr(torch, dtype))
        mail.dispatch(0, 4, 1, hidden, [part_of([0, 1, 4, 5]), part_of([3])])
        sent_at = slice(64 + 56, 64 + 64)
        for region in regions:
            region[sent_at] = bytes(8)
        written.append([bytes(region) for region in regions])
    assert written[0] == written[1]


def part_of(rows: list[int]) -> Part:
    choices = torch.arange(3 * len(rows)).view(-1, 3)
    return Part(torch.tensor(rows), choices.to(torch.int32), choices.float() / 2)


@pytest.mark.parametrize("mover", IMPLEMENTATIONS)
def test_no_row_of_an_earlier_message_is_seen_or_added(mover: str) -> None:
    """Slots full of an earlier, larger message: what is behind the rows stays behind them."""
    geometry = Geometry(1, 1, 1, capacity=6, hidden_size=5, top_k=3, dtype="float32")
    with local_cluster(geometry, mover) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        poison = torch.full((6, 5), torch.nan)
        for hidden, rows in ((poison, [0, 1, 2, 3, 4, 5]), (torch.ones(6, 5), [1, 4])):
            handle = attention.dispatch(0, 0, hidden, [part_of(rows)])
            (message,) = expert.receive()
            assert isinstance(message, Dispatch)
            expert.reply_buffer(message).copy_(message.hidden)
            expert.reply(message)
            assert len(attention.poll()) == 1
            out = torch.zeros(6, 5)
            attention.combine(handle, out)
        assert torch.equal(message.hidden, torch.ones(2, 5))
        assert torch.equal(message.local_ids, part_of(rows).local_ids)
        assert torch.equal(message.weights, part_of(rows).weights)
        assert out.sum(dim=1).tolist() == [0, 5, 0, 0, 5, 0]


@pytest.mark.parametrize("mover", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", [[0, 6], [-1]])
def test_a_row_that_is_not_there_is_refused(mover: str, rows: list[int]) -> None:
    geometry = Geometry(1, 1, 1, capacity=6, hidden_size=5, top_k=3, dtype="float32")
    with local_cluster(geometry, mover) as cluster:
        port = cluster.attention[0]
        with pytest.raises(ProtocolError, match="a row outside the 6 tokens"):
            port.dispatch(0, 0, torch.zeros(6, 5), [part_of(rows)])
        assert cluster.experts[0].receive() == []
        port.dispatch(0, 0, torch.zeros(6, 5), [part_of([5])])  # nothing is in flight


@built
@pytest.mark.parametrize("replies", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sums", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_equal_to_the_bit(replies: str, sums: torch.dtype) -> None:
    geometry = Geometry(1, 2, 1, capacity=6, hidden_size=37, top_k=3, dtype=replies)
    generator = torch.Generator().manual_seed(5)
    dtype = getattr(torch, replies)
    answers = [torch.randn(3, 37, generator=generator).to(dtype) for _ in range(2)]
    answers[0][0, 0], answers[1][2, 36] = torch.nan, torch.inf
    start = torch.randn(6, 37, generator=generator).to(sums)
    results = []
    for mover in ("plain", "native"):
        with local_cluster(geometry, mover) as cluster:
            port = cluster.attention[0]
            parts = [part_of([0, 2, 5]), part_of([1, 2, 3])]
            handle = port.dispatch(0, 0, torch.zeros(6, 37, dtype=dtype), parts)
            for expert, answer in zip(cluster.experts, answers, strict=True):
                (message,) = expert.receive()
                assert isinstance(message, Dispatch)
                expert.reply_buffer(message).copy_(answer)
                expert.reply(message)
            port.poll()
            results.append(start.clone())
            port.combine(handle, results[-1])
    assert torch.equal(results[0].isnan(), results[1].isnan())
    assert torch.equal(results[0].nan_to_num(), results[1].nan_to_num())


# --- wake-ups: a lost one leaves both sides waiting for longer than the test may take -------------

PAIR = Geometry(1, 1, 1, capacity=1, hidden_size=8, top_k=1, dtype="float32")
FOR_EVER = 1000.0
MESSAGES = 4000


def dither(numbers: random.Random) -> None:
    """Nothing to about 50 us of work, so that messages meet every moment of a wait."""
    for _ in range(numbers.choice((0, 0, numbers.randrange(100), numbers.randrange(1000)))):
        pass


def stressed_expert(token: str, options: PortOptions) -> None:
    numbers = random.Random(1)
    port = open_expert_port(Road("shm", token, options), Seat(PAIR, 0, 0), SECONDS)
    left = MESSAGES
    while left:
        port.wait(FOR_EVER)
        for message in port.receive():
            assert isinstance(message, Dispatch)
            dither(numbers)
            port.reply_buffer(message).copy_(message.hidden)
            port.reply(message)
            left -= 1
    while not port.lost_peers():
        port.wait(FOR_EVER)


def stressed_attention(token: str, options: PortOptions) -> None:
    numbers = random.Random(2)
    port = open_attention_port(Road("shm", token, options), Seat(PAIR, 0, 0), SECONDS)
    part = Part(torch.arange(1), torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1))
    for number in range(MESSAGES):
        handle = port.dispatch(0, number, torch.full((1, 8), float(number)), [part])
        while not port.poll():
            dither(numbers)
            port.wait(FOR_EVER)
        out = torch.zeros(1, 8)
        port.combine(handle, out)
        assert out.unique().tolist() == [number]
        dither(numbers)
    port.close()


PYTHON, SLEEPY = PortOptions(mover="plain"), PortOptions(mover="native")
BRISK, EAGER = PortOptions(2e-5, mover="native"), PortOptions(1e-3, mover="native")


@built
@pytest.mark.parametrize(
    ("attention", "expert"),
    [(SLEEPY, SLEEPY), (BRISK, BRISK), (EAGER, EAGER), (SLEEPY, PYTHON), (PYTHON, BRISK)],
    ids=["sleepy", "brisk", "eager", "sleepy to python", "python to brisk"],
)
def test_no_wake_up_is_lost(attention: PortOptions, expert: PortOptions) -> None:
    token = fresh_token()
    join_all([fork(stressed_expert, token, expert), fork(stressed_attention, token, attention)])


def test_what_is_not_built_says_so() -> None:
    with pytest.raises(ConfigError, match="parts are not built; install a C\\+\\+ compiler"):
        load_library(native_library.FOLDER / "native", {}, "parts", "do without")
