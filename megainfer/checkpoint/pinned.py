"""A checkpoint's files, held in memory so that a node that is started again finds them there.

Mapped and locked a piece at a time, by a process that has other things to do. What a file holds is
in the page cache once; whoever reads it reads from there, and the kernel can't give it up.
"""

import ctypes
import os
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

from megainfer.config import format_bytes
from megainfer.errors import ConfigError
from megainfer.gguf.files import SUFFIX

PIECE_BYTES = 16 << 20
"""A few milliseconds where it has just been read, a tenth of a second from a slow disk."""


class PinnedFiles:
    """The weights in a folder. Locks end with the process."""

    def __init__(self, folder: Path) -> None:
        self.pinned = 0  # bytes so far
        self._maps: list[mmap] = []
        self._pieces = self._lock(weight_files(folder))
        self.done = False

    def step(self) -> None:
        """Hold one more piece. Raises ConfigError, naming the limit, where that isn't allowed."""
        if next(self._pieces, None) is None:
            self.done = True

    def _lock(self, files: list[Path]) -> Iterator[int]:
        libc = ctypes.CDLL(None, use_errno=True)
        for file in files:
            with file.open("rb") as opened:
                mapped = mmap(opened.fileno(), 0, access=ACCESS_READ)
            self._maps.append(mapped)
            start = _address(mapped)
            for first in range(0, len(mapped), PIECE_BYTES):
                size = min(PIECE_BYTES, len(mapped) - first)
                if libc.mlock(ctypes.c_void_p(start + first), ctypes.c_size_t(size)):
                    reason = os.strerror(ctypes.get_errno())
                    raise ConfigError(
                        f"--pin-weights: after {format_bytes(self.pinned)} no more of {file.name} "
                        f"can be locked in memory: {reason}; `ulimit -l` says how much may be"
                    )
                self.pinned += size
                yield size


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; where there are none, its GGUF files."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob(f"*{SUFFIX}"))


def _address(mapped: mmap) -> int:
    import numpy as np

    address: int = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
    return address
