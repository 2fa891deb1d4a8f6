"""Where the ranks of a node leave what torch's groups want to know of each other."""

import struct
from collections.abc import Sequence
from datetime import timedelta
from mmap import mmap
from time import monotonic

from torch._C._distributed_c10d import Store

from megainfer.errors import NodeDied
from megainfer.ranks.layout import LINE_BYTES, MEETING_BYTES
from megainfer.ranks.words import Words

LOOK_SECONDS = 0.002
"""How long it waits for one rank before it looks what another has set."""
_LENGTHS = struct.Struct("<II")  # of a key and its value, which follow


class MeetingStore(Store):
    """`torch.distributed.Store` in the memory that ranks share: it has no name, so nobody else can
    read or write it.

    Each rank writes only in its own part, whose word says how many values are there. Whoever waits
    for a value gives up after so many seconds: NodeDied.
    """

    def __init__(self, memory: mmap, parts: Sequence[int], rank: int, seconds: float) -> None:
        """parts: offsets of all ranks' parts, each of MEETING_BYTES."""
        super().__init__()
        self._memory = memory
        self._parts, self._rank, self._seconds = parts, rank, seconds
        self._words = Words(memory, [*parts], rank, spin_seconds=0.0)
        self._ends = [part + LINE_BYTES for part in parts]  # of what is known of each
        self._counts = [0] * len(parts)
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes | str) -> None:
        """For all ranks."""
        name, data = key.encode(), value.encode() if isinstance(value, str) else bytes(value)
        begin = self._ends[self._rank]
        record = _LENGTHS.pack(len(name), len(data)) + name + data
        end = begin + len(record)
        assert end <= self._parts[self._rank] + MEETING_BYTES, f"{key} of {len(data)} bytes"
        self._memory[begin:end] = record
        self._ends[self._rank] = end
        self._counts[self._rank] += 1
        self._values[key] = data
        self._words.say(self._counts[self._rank])

    def get(self, key: str) -> bytes:
        """What any rank has set; waits for it."""
        deadline = monotonic() + self._seconds
        while key not in self._values:
            if monotonic() > deadline:
                raise NodeDied(f"no rank has said {key!r} for {self._seconds:g} s")
            self._hear(LOOK_SECONDS)
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Until all are set."""
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        self._hear(0.0)
        return all(key in self._values for key in keys)

    def _hear(self, seconds: float) -> None:
        """What the others have set since; waits so long for each."""
        for rank in range(len(self._parts)):
            while rank != self._rank and self._words.wait(rank, self._counts[rank] + 1, seconds):
                self._read(rank)

    def _read(self, rank: int) -> None:
        """The next value that this rank has set."""
        begin = self._ends[rank]
        lengths = _LENGTHS.unpack_from(self._memory, begin)
        middle = begin + _LENGTHS.size + lengths[0]
        key = self._memory[begin + _LENGTHS.size : middle].decode()
        self._ends[rank] = middle + lengths[1]
        self._values[key] = self._memory[middle : self._ends[rank]]
        self._counts[rank] += 1
