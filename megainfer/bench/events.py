"""Server-sent events out of bytes that come in any pieces."""

from dataclasses import dataclass

from megainfer.errors import MegaInferError

MAX_EVENT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is empty where the server gave none."""

    name: bytes
    data: bytes


class EventReader:
    """Feed it what arrives; lines may end in LF, CRLF or CR, and be cut anywhere.

    Source of the rules: the WHATWG's HTML standard, section 9.2.6. Raises MegaInferError for an
    event beyond MAX_EVENT_BYTES.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._skip_newline = False  # the last piece ended in a CR whose LF may follow
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece completes."""
        if self._skip_newline and piece[:1] == b"\n":
            piece = piece[1:]
        self._skip_newline = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            self._refuse()
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._end()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
            if self._size > MAX_EVENT_BYTES:
                self._refuse()
        elif field == b"event":
            self._name = value
        return None  # a comment (no field name), id, retry and unknown fields say nothing here

    def _end(self) -> Event | None:
        event = Event(self._name, b"\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = b"", [], 0
        return event

    def _refuse(self) -> None:
        raise MegaInferError(f"the server sent an event of more than {MAX_EVENT_BYTES} bytes")
