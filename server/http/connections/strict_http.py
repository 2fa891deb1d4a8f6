"""What a head must be for a request to mean the same to every proxy in front of this server.

h11 takes what older clients may send: bare line feeds, folded headers, a body with both a length
and chunks. A proxy that reads such a head otherwise passes on a second request inside the first.
"""

import re

import h11

MAX_HEAD_BYTES = 2**16
FOLD = re.compile(rb"\n[ \t]")


class StrictConnection(h11.Connection):
    """h11's, but a head that could be read in two ways is refused, as is a long one."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """See h11. Raises RemoteProtocolError."""
        if self.their_state is not h11.IDLE:
            return super().next_event()
        before, _ = self.trailing_data
        event = super().next_event()
        if isinstance(event, h11.Request):
            after, _ = self.trailing_data
            _check(before[: len(before) - len(after)], event)
        return event


def _check(head: bytes, request: h11.Request) -> None:
    if len(head) > MAX_HEAD_BYTES:
        raise h11.RemoteProtocolError(f"the head has more than {MAX_HEAD_BYTES} bytes")
    if head.count(b"\n") != head.count(b"\r\n"):
        raise h11.RemoteProtocolError("a line of the head ends without a carriage return")
    if FOLD.search(head):
        raise h11.RemoteProtocolError("a header is folded")
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise h11.RemoteProtocolError("the body has both a length and an encoding")
