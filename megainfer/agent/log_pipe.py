"""What a node writes to its standard output and error, line by line."""

import os
import sys

_MOST_BYTES = 1 << 16
"""Of one line; a longer one is cut into several."""


class LogPipe:
    """The reading end. A node that is forked within `with` has the other as its own."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._begun = b""
        self._saved: tuple[int, ...] = ()

    def fileno(self) -> int:
        return self._reader

    def __enter__(self) -> None:
        """What is forked until the end of the block writes here."""
        _flush()
        self._saved = os.dup(1), os.dup(2)
        os.dup2(self._writer, 1)
        os.dup2(self._writer, 2)

    def __exit__(self, *_: object) -> None:
        """From now on only what was forked can write."""
        _flush()
        for saved, own in zip(self._saved, (1, 2), strict=True):
            os.dup2(saved, own)
        self._close_writers()

    def lines(self) -> list[str]:
        """Those that are whole by now, without their ends; never blocks. The last one, once nobody
        writes any more, is whole as it is."""
        data, ended = self._read()
        *whole, self._begun = (self._begun + data).split(b"\n")
        if self._begun and (ended or len(self._begun) > _MOST_BYTES):
            whole.append(self._begun)
            self._begun = b""
        return [line.decode(errors="replace") for line in whole]

    def close(self) -> None:
        """In the node, too: it keeps what it writes to."""
        os.close(self._reader)
        self._close_writers()

    def _close_writers(self) -> None:
        held, self._saved = (*self._saved, self._writer), ()
        for descriptor in held if self._writer >= 0 else ():
            os.close(descriptor)
        self._writer = -1

    def _read(self) -> tuple[bytes, bool]:
        """(what has come, whether that was all)"""
        try:
            data = os.read(self._reader, _MOST_BYTES)
        except BlockingIOError:
            return b"", False
        return data, not data


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
