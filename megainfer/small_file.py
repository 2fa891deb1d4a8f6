"""Files that somebody else wrote, read within bounds.

A model's folder may hold a pipe that nobody fills, a device that never ends, or a file of terabytes
that takes no room on disk; so may whatever an option names.
"""

import errno
import os
import stat
from pathlib import Path

MEGABYTE = 2**20
MAX_JSON_BYTES = 256 * MEGABYTE
"""The index of the largest checkpoints has 20."""


def read_small(path: Path, most_bytes: int) -> bytes:
    """The file's content. Raises OSError, also where it isn't a regular file or larger."""
    # Opening a pipe waits for who writes, unless told not to.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if found.st_size > most_bytes:
            reason = f"it has {found.st_size} bytes, at most {most_bytes} are read"
            raise OSError(errno.EFBIG, reason, str(path))
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:  # it grew, or is one of /proc's
        raise OSError(errno.EFBIG, f"more than {most_bytes} bytes", str(path))
    return content


def read_small_text(path: Path, most_bytes: int) -> str:
    """The same as UTF-8. Raises OSError, UnicodeDecodeError."""
    return read_small(path, most_bytes).decode("utf-8")
