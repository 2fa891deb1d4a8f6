"""What is said on the connection between rank 0 and a rank of another host, little-endian.

    ORDER  to the rank: number (8), fields that go with it (4), a bit for each by its number, rows
           of each (4), the order (64, int64)
    DONE   from it: the order's number (8), rows of what it has made (8)

Each is answered by the other, so they need no kind. What goes with an order, and what is made, are
payloads on the groups, in the order of fields' numbers.
"""

import struct
from typing import NamedTuple

from megainfer.ranks.layout import ORDER_NUMBERS

_ORDER = struct.Struct(f"<QII{ORDER_NUMBERS}q")
_DONE = struct.Struct("<QQ")
ORDER_BYTES = _ORDER.size
DONE_BYTES = _DONE.size


class OrderFrame(NamedTuple):
    """fields: a bit for each that goes with it."""

    number: int
    fields: int
    rows: int
    order: tuple[int, ...]

    def pack(self) -> bytes:
        rest = (0,) * (ORDER_NUMBERS - len(self.order))
        return _ORDER.pack(self.number, self.fields, self.rows, *self.order, *rest)

    @classmethod
    def unpack(cls, data: bytes) -> "OrderFrame":
        number, fields, rows, *order = _ORDER.unpack(data)
        return cls(number, fields, rows, tuple(order))


class DoneFrame(NamedTuple):
    number: int
    rows: int

    def pack(self) -> bytes:
        return _DONE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "DoneFrame":
        return cls(*_DONE.unpack(data))
