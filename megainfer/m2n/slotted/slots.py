"""Slots in shared memory: how a message is published and read, wherever the memory lives.

    word line          header line     payload
    +------+---------+ +------------+ +--------------------------+
    | word |  unused | | 64 bytes   | | whole lines, see geometry|
    +------+---------+ +------------+ +--------------------------+

The word is `sequence << 1` when that message stands in the slot, odd while it is being written,
and 0 when there never was one. It is always stored and loaded as one aligned 8-byte access.
"""

from mmap import mmap
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from megainfer.device import HOST, Device
from megainfer.m2n.geometry import LINE_BYTES, Geometry
from megainfer.m2n.message import HEADER_BYTES, Header
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.payloads import Payloads, StridedPayloads

WRITING = 1
HEADER_OFFSET = LINE_BYTES
_PAYLOAD_OFFSET = 2 * LINE_BYTES


def being_written(word: int) -> bool:
    return bool(word & WRITING)


def published_word(sequence: int) -> int:
    return sequence << 1


class Fence:
    """A memory barrier, from plain Python: a lock that is given up and taken again.

    Releasing a lock orders everything before it, taking one everything after it; both on the same
    lock order the two. x86-64 keeps stores in order without; ARM and POWER do not.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()

    def __call__(self) -> None:
        self._lock.release()
        self._lock.acquire()


class Slots:
    """`count` slots of `stride` bytes each, from slot number `first` of a region on.

    payloads: of all of the region's slots; None: they are in it. device: where they are. Words,
    headers and texts are host memory on every road.
    """

    device: Device = HOST

    def __init__(
        self, memory: mmap, stride: int, first: int, count: int, payloads: Payloads | None = None
    ) -> None:
        self._memory = memory
        self._stride = stride
        self._first = first
        self._base = first * stride
        self._words = self._each(0, count)
        self._fence = Fence()
        if payloads is None:
            with torch.inference_mode(False):  # it is written in any mode
                flat = torch.frombuffer(memory, dtype=torch.uint8)
            payloads = StridedPayloads(flat, stride, _PAYLOAD_OFFSET)
        self._payloads = payloads

    def _each(self, offset: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
        """The 64-bit word at `offset` of every slot."""
        start = self._base + offset
        return np.ndarray((count,), np.uint64, self._memory, start, (self._stride,))

    def words(self) -> list[int]:
        """The word of every slot, in one read."""
        words: list[int] = self._words.tolist()
        return words

    def begin(self, slot: int, sequence: int) -> None:
        """From here on readers leave the slot alone, until `publish`."""
        self._words[slot] = published_word(sequence) | WRITING
        self._fence()

    def publish(self, slot: int, header: Header) -> None:
        """Write `header` in front of the payload that was written since `begin`, and show both."""
        self._write_header(slot, header)
        self._words[slot] = published_word(header.sequence)

    def header_bytes(self, slot: int, word: int) -> bytes | None:
        """A copy of the header that was published as `word`; None if it is already another."""
        copy = self._copy_header(slot)
        return copy if int(self._words[slot]) == word else None

    def _write_header(self, slot: int, header: Header) -> None:
        start = self._base + slot * self._stride + HEADER_OFFSET
        self._memory[start : start + HEADER_BYTES] = header.pack()
        self._fence()

    def _copy_header(self, slot: int) -> bytes:
        start = self._base + slot * self._stride + HEADER_OFFSET
        self._fence()
        copy = self._memory[start : start + HEADER_BYTES]
        self._fence()
        return copy

    def tensor(self, slot: int, offset: int, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        """A view of the payload from `offset` bytes on."""
        return self._payloads.tensor(self._first + slot, offset, dtype, shape)

    def write_text(self, slot: int, text: bytes) -> None:
        start = self._base + slot * self._stride + _PAYLOAD_OFFSET
        self._memory[start : start + len(text)] = text

    def read_text(self, slot: int, length: int) -> str:
        start = self._base + slot * self._stride + _PAYLOAD_OFFSET
        return self._memory[start : start + length].decode("utf-8", errors="replace")

    def awaited(self, epoch: int) -> bool:
        """Whether a message of this epoch or a later one was announced that is yet to be published;
        none is where publishing is the announcement."""
        return False

    def close(self) -> None:
        """They are written no more."""


def torch_dtype(geometry: Geometry) -> torch.dtype:
    dtype = getattr(torch, geometry.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dispatch_payload(
    slots: Slots, slot: int, rows: int, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a dispatch of R rows: hidden [R, D], local ids int32 [R, K], weights float32."""
    choices = (rows, geometry.top_k)
    return (
        slots.tensor(slot, 0, torch_dtype(geometry), (rows, geometry.hidden_size)),
        slots.tensor(slot, geometry.ids_offset(rows), torch.int32, choices),
        slots.tensor(slot, geometry.weights_offset(rows), torch.float32, choices),
    )


def reply_payload(slots: Slots, slot: int, rows: int, geometry: Geometry) -> Tensor:
    """View of a reply's sums [R, D]."""
    return slots.tensor(slot, 0, torch_dtype(geometry), (rows, geometry.hidden_size))


def dispatch_slots(memory: mmap, geometry: Geometry, first: int, count: int) -> Slots:
    """Slots of an expert node's region; attention node i's are the m from i * m on."""
    return Slots(memory, geometry.dispatch_slot_bytes, first, count)


def reply_slots(memory: mmap, geometry: Geometry, first: int, count: int) -> Slots:
    """Slots of an attention node's region; expert node n's are the m from n * m on."""
    return Slots(memory, geometry.reply_slot_bytes, first, count)


def slots_at_expert(seat: Seat, region: mmap) -> Slots:
    """An attention node's dispatch slots in an expert node's region."""
    m = seat.geometry.micro_batches
    return dispatch_slots(region, seat.geometry, seat.index * m, m)


def slots_at_attention(seat: Seat, region: mmap) -> Slots:
    """An expert node's reply slots in an attention node's region."""
    m = seat.geometry.micro_batches
    return reply_slots(region, seat.geometry, seat.index * m, m)
