"""The bytes of a message: header, layout, and the arithmetic of slots."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.errors import ConfigError, ProtocolError
from megainfer.m2n.geometry import LINE_BYTES, Geometry
from megainfer.m2n.message import Header, Kind, check_layout

GEOMETRY = Geometry(
    num_attention=2,
    num_expert=3,
    micro_batches=2,
    capacity=16,
    hidden_size=24,
    top_k=2,
    dtype="bfloat16",
)
HEADER = Header(
    kind=Kind.DISPATCH,
    dtype=2,
    layer=11,
    epoch=7,
    sequence=0x0102030405060708,
    micro_batch=1,
    source=1,
    rows=5,
    top_k=2,
    hidden_size=24,
    length=256 + 64 + 64,
    sent_at=0x0A0000000000000B,
)
LITERAL = (
    b"M2N\0"
    b"\x03\0\0\0"  # version
    b"\x01\0"  # kind: dispatch
    b"\x02\0"  # dtype: bfloat16
    b"\x0b\0\0\0"  # layer
    b"\x07\0\0\0\0\0\0\0"  # epoch
    b"\x08\x07\x06\x05\x04\x03\x02\x01"  # sequence
    b"\x01\0"  # micro-batch
    b"\x01\0"  # source
    b"\x05\0\0\0"  # rows
    b"\x02\0\0\0"  # top_k
    b"\x18\0\0\0"  # hidden_size
    b"\x80\x01\0\0\0\0\0\0"  # length
    b"\x0b\0\0\0\0\0\0\x0a"  # sent_at
)


def test_header_is_these_64_bytes() -> None:
    assert len(LITERAL) == 64
    assert HEADER.pack() == LITERAL
    assert Header.unpack(LITERAL) == HEADER


def test_kinds_are_these_numbers() -> None:
    assert {kind.name: kind.value for kind in Kind} == {
        "DISPATCH": 1,
        "REPLY": 2,
        "REST": 3,
        "ERROR": 4,
    }


@pytest.mark.parametrize(
    ("offset", "replacement", "message"),
    [
        (0, b"XYZ\0", r"begins with b'XYZ\\x00', expected b'M2N\\x00'"),
        (4, struct.pack("<I", 99), "peer speaks M2N version 99, this is 3"),
        (8, struct.pack("<H", 5), "kind 5, expected 1 to 4"),
        (8, struct.pack("<H", 0), "kind 0, expected 1 to 4"),
    ],
)
def test_foreign_header_is_refused(offset: int, replacement: bytes, message: str) -> None:
    data = LITERAL[:offset] + replacement + LITERAL[offset + len(replacement) :]
    with pytest.raises(ProtocolError, match=message):
        Header.unpack(data)


def test_short_header_is_refused() -> None:
    with pytest.raises(ProtocolError, match="63 bytes, expected 64"):
        Header.unpack(LITERAL[:-1])


def test_agreed_layout_is_accepted() -> None:
    check_layout(HEADER, GEOMETRY)
    check_layout(HEADER._replace(kind=Kind.REPLY, length=256), GEOMETRY)
    check_layout(HEADER._replace(kind=Kind.REST, rows=0, length=0), GEOMETRY)
    check_layout(HEADER._replace(kind=Kind.ERROR, rows=0, length=1024), GEOMETRY)
    check_layout(HEADER._replace(rows=0, length=0), GEOMETRY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 1}, "dtype code 1, agreed was 2"),
        ({"top_k": 3}, "top_k 3, agreed was 2"),
        ({"hidden_size": 25}, "hidden_size 25, agreed was 24"),
        ({"micro_batch": 2}, "micro_batch 2, the most is 1"),
        ({"rows": 17}, "rows 17, the most is 16"),
        ({"length": 385}, "length 385, agreed was 384"),
        ({"kind": Kind.REPLY}, "length 384, agreed was 256"),
        ({"kind": Kind.REST, "length": 0}, "rows 5, agreed was 0"),
        ({"kind": Kind.ERROR}, "rows 5, agreed was 0"),
        ({"kind": Kind.ERROR, "rows": 0, "length": 1025}, "length 1025, the most is 1024"),
    ],
)
def test_wrong_field_is_named_with_both_values(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        check_layout(HEADER._replace(**changes), GEOMETRY)


uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
uint16 = st.integers(0, 2**16 - 1)
headers = st.builds(
    Header,
    *(st.sampled_from(Kind), uint16, uint32, uint64, uint64, uint16, uint16),
    *(uint32, uint32, uint32, uint64, uint64),
)


@given(headers)
@settings(max_examples=50)
def test_header_survives_the_wire(header: Header) -> None:
    assert Header.unpack(header.pack()) == header


@given(rows=st.integers(0, 16), hidden=st.integers(1, 70), top_k=st.integers(1, 40))
@settings(max_examples=50)
def test_payload_parts_are_aligned_apart_and_inside_the_slot(
    rows: int, hidden: int, top_k: int
) -> None:
    geometry = Geometry(1, 1, 1, 16, hidden, top_k, "float32")
    ids, weights = geometry.ids_offset(rows), geometry.weights_offset(rows)
    end = geometry.dispatch_bytes(rows)
    assert ids >= rows * hidden * 4
    assert weights - ids >= rows * top_k * 4
    assert end - weights >= rows * top_k * 4
    sizes = (ids, weights, end, geometry.dispatch_slot_bytes, geometry.reply_slot_bytes)
    assert all(size % LINE_BYTES == 0 for size in sizes)
    assert 2 * LINE_BYTES + end <= geometry.dispatch_slot_bytes
    assert 2 * LINE_BYTES + geometry.reply_bytes(rows) <= geometry.reply_slot_bytes


def test_buffers_of_an_instance() -> None:
    # A dispatch slot: 2 lines, 16 rows of 24 bf16, 16 rows of 2 ids, 16 rows of 2 weights.
    assert GEOMETRY.dispatch_slot_bytes == 128 + 768 + 128 + 128
    assert GEOMETRY.reply_slot_bytes == 128 + 1024  # an error has more room than the rows
    assert GEOMETRY.expert_region_bytes == 2 * 2 * 1152 + 64  # slots, and whether the node is awake
    assert GEOMETRY.attention_region_bytes == 3 * 2 * 1152 + 64
    assert GEOMETRY.total_bytes == 3 * (4 * 1152 + 64) + 2 * (6 * 1152 + 64)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "float64", "cannot carry dtype 'float64'; it can carry float32, bfloat16"),
        ("capacity", 0, "capacity in 1..4294967295, not 0"),
        ("num_expert", -1, "num_expert in 1..4294967295, not -1"),
        ("hidden_size", 2**32, "hidden_size in 1..4294967295, not 4294967296"),
    ],
)
def test_impossible_geometry_is_refused(field: str, value: object, message: str) -> None:
    good = {name: getattr(GEOMETRY, name) for name in Geometry.__slots__}
    with pytest.raises(ConfigError, match=message):
        Geometry(**{**good, field: value})
