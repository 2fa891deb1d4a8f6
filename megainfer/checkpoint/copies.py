"""Copies of weights in memory: what happens to the files that they are of is no more their affair.

No torch. A copy is a file without a name in any file system (memfd_create), sealed, so that nobody
can change it; it is there for as long as some process has it open. Linux.
"""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from megainfer.config import format_bytes
from megainfer.errors import CheckpointError, ConfigError

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
PIECE_BYTES = 64 << 20


class SealedCopies:
    """Of some files, made at once. Closing gives the memory back, unless others have it open.

    Raises CheckpointError where a file can't be read, or any is written to or replaced before all
    are copied: they would be of two checkpoints. ConfigError where there is no memory for all.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._open: list[int] = []
        try:
            before = [_stamp(path) for path in files]
            for path in files:
                self._open.append(_copy(path))
            for path, stamp in zip(files, before, strict=True):
                if _stamp(path) != stamp:
                    raise CheckpointError(
                        f"{path} was written to while it was read; give it when whole"
                    )
        except BaseException:
            self.close()
            raise

    @property
    def paths(self) -> list[str]:
        """Under which other processes of this user can open them while this one has them open."""
        return [f"/proc/{os.getpid()}/fd/{file}" for file in self._open]

    def close(self) -> None:
        """Can be called twice."""
        while self._open:
            os.close(self._open.pop())

    def __enter__(self) -> "SealedCopies":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _stamp(path: Path) -> tuple[int, ...]:
    """Which file it is, and when it was last written to and changed at all (which nobody can set
    back)."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _copy(path: Path) -> int:
    """The descriptor of a sealed copy; of what is sealed already, of the file itself."""
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if _is_sealed(source):
        return source
    try:
        return _copied(source, path)
    finally:
        os.close(source)


def is_sealed_file(path: Path) -> bool:
    """Whether nobody can change it, so that it need not be copied. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _is_sealed(file)
    finally:
        os.close(file)


def _is_sealed(file: int) -> bool:
    try:
        return fcntl.fcntl(file, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:  # of a file system without seals
        return False


def _copied(source: int, path: Path) -> int:
    size = os.fstat(source).st_size
    copy = os.memfd_create("megainfer-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _send(source, copy, size)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        os.close(copy)
        raise ConfigError(
            f"{path} of {format_bytes(size)} can't be copied: {error.strerror}"
        ) from error
    except BaseException:
        os.close(copy)
        raise
    return copy


def _send(source: int, copy: int, size: int) -> None:
    done = 0
    while done < size:
        count = os.sendfile(copy, source, done, min(PIECE_BYTES, size - done))
        if not count:
            return  # it has become shorter, as its new size says
        done += count
