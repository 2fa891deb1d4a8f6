"""What a launcher's process tells the supervisor: a line of JSON each, on a pipe."""

import os
from contextlib import suppress

import msgspec

_MOST_BYTES = 1 << 16
"""Of a line; a pipe takes so many at least before it would block."""


class Here(msgspec.Struct, frozen=True, tag=True):
    """The address of the supervisor's machine, as the engine's others reach it."""

    address: str


class Said(msgspec.Struct, frozen=True, tag=True):
    """For the log."""

    text: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Agents can't be had, because of this; the launcher ends."""

    reason: str


Word = Here | Said | Failed
_decoder = msgspec.json.Decoder(Word)


def say(pipe: int, word: Word) -> None:
    """pipe: the writing end. Nobody to hear it is no error: who says it ends with the other."""
    with suppress(BrokenPipeError):
        os.write(pipe, msgspec.json.encode(word) + b"\n")


class Words:
    """What has come of them. pipe: the reading end, which is this one's to close from now on."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self.pipe = pipe
        self.ended = False
        self._begun = b""

    def read(self) -> list[Word]:
        """Those that are whole by now; never blocks."""
        if self.ended:
            return []
        try:
            data = os.read(self.pipe, _MOST_BYTES)
        except BlockingIOError:
            return []
        self.ended = not data
        *whole, self._begun = (self._begun + data).split(b"\n")
        return [_decoder.decode(line) for line in whole]

    def close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
        self.pipe, self.ended = -1, True
