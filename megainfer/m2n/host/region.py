"""A node's slots as memory that other processes map, and the bell that they ring.

Both are file descriptors without a name, so that nothing is left when their processes are killed.
"""

import fcntl
import io
import os
from mmap import mmap

from megainfer.errors import ProtocolError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ONE_RING = (1).to_bytes(8, "little")
_COUNTER_BYTES = 8


def create_region(size: int) -> io.FileIO:
    """`size` zero bytes whose size nobody can change any more (a smaller one would be SIGBUS)."""
    descriptor = os.memfd_create("megainfer-m2n", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    file = io.FileIO(descriptor, "r+")
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return file


def map_region(file: io.FileIO, size: int) -> mmap:
    """Map a region. Raises ProtocolError when it is not what `create_region(size)` makes."""
    found = os.fstat(file.fileno()).st_size
    if found != size:
        raise ProtocolError(f"the peer's slots have {found} bytes, expected {size}")
    if fcntl.fcntl(file.fileno(), fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise ProtocolError("the peer's slots are not sealed: it could shrink them under us")
    return mmap(file.fileno(), size)


class Bell:
    """An eventfd. Ringing never blocks; a ring that was not heard yet and a new one are one."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    @classmethod
    def create(cls) -> "Bell":
        return cls(io.FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+"))

    def fileno(self) -> int:
        return self._file.fileno()

    def ring(self) -> None:
        self._file.write(_ONE_RING)  # not written when the counter is full: it rings already

    def silence(self) -> None:
        self._file.read(_COUNTER_BYTES)

    def close(self) -> None:
        self._file.close()
