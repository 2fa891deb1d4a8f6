"""The header in front of every M2N message: 64 bytes, little-endian, listed in docs/m2n.md."""

import struct
from enum import IntEnum
from typing import NamedTuple

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry

MAGIC = b"M2N\0"
VERSION = 3
HEADER_BYTES = 64
EPOCH_OFFSET = 16
_LAYOUT = struct.Struct("<4sIHHIQQHHIIIQQ")


class Kind(IntEnum):
    DISPATCH = 1
    REPLY = 2
    REST = 3
    ERROR = 4


_KINDS = frozenset(Kind)


class Header(NamedTuple):
    """The fields after magic and version, in the order of the wire.

    source: the sender's index among the nodes of its role. rows: R of the payload, 0 for REST and
    ERROR. length: bytes of payload behind the header. sent_at: nanoseconds of the sender's
    monotonic clock when it began to send, which a receiver on the same host shares.
    """

    kind: int
    dtype: int
    layer: int
    epoch: int
    sequence: int
    micro_batch: int
    source: int
    rows: int
    top_k: int
    hidden_size: int
    length: int
    sent_at: int

    def pack(self) -> bytes:
        return _LAYOUT.pack(MAGIC, VERSION, *self)

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """The header in `data` [64]. Raises ProtocolError on a foreign magic, version or kind."""
        if len(data) != HEADER_BYTES:
            raise ProtocolError(f"M2N header of {len(data)} bytes, expected {HEADER_BYTES}")
        magic, version, *values = _LAYOUT.unpack(data)
        if magic != MAGIC:
            raise ProtocolError(f"M2N message begins with {magic!r}, expected {MAGIC!r}")
        if version != VERSION:
            raise ProtocolError(f"peer speaks M2N version {version}, this is {VERSION}")
        header = cls(*values)
        if header.kind not in _KINDS:
            raise ProtocolError(f"M2N message of kind {header.kind}, expected 1 to {max(Kind)}")
        return header


def check_layout(header: Header, geometry: Geometry) -> None:
    """Raises ProtocolError when `header` contradicts the agreed geometry, naming both values."""
    _expect("dtype code", header.dtype, geometry.dtype_code)
    _expect("top_k", header.top_k, geometry.top_k)
    _expect("hidden_size", header.hidden_size, geometry.hidden_size)
    _at_most("micro_batch", header.micro_batch, geometry.micro_batches - 1)
    _at_most("rows", header.rows, geometry.capacity)
    if header.kind == Kind.ERROR:
        _expect("rows", header.rows, 0)
        _at_most("length", header.length, geometry.error_room)
    else:
        _expect("length", header.length, _payload_bytes(header, geometry))


def _payload_bytes(header: Header, geometry: Geometry) -> int:
    if header.kind == Kind.REST:
        _expect("rows", header.rows, 0)
        return 0
    if header.kind == Kind.DISPATCH:
        return geometry.dispatch_bytes(header.rows)
    return geometry.reply_bytes(header.rows)


def _expect(field: str, found: int, agreed: int) -> None:
    if found != agreed:
        raise ProtocolError(f"M2N message with {field} {found}, agreed was {agreed}")


def _at_most(field: str, found: int, limit: int) -> None:
    if found > limit:
        raise ProtocolError(f"M2N message with {field} {found}, the most is {limit}")
