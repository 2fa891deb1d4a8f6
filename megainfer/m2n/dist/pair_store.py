"""Where the two ends of a pair leave what torch's groups want to know of each other."""

from datetime import timedelta

from torch._C._distributed_c10d import Store

from megainfer.errors import ProtocolError
from megainfer.m2n.host.handshake import Channel, Frame

_KEY_LENGTH_BYTES = 2
_MOST_KEYS = 64


class PairStore(Store):
    """`torch.distributed.Store` of two processes, over the connection on which they shake hands.

    What either sets is sent to the other, so nobody else can read or write it, nothing listens for
    it, and every wait ends with the handshake's deadline. After `close` it knows what it knew.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel: Channel | None = channel
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes | str) -> None:
        """Here and at the other end."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._values[key] = data
        if self._channel is not None:
            name = key.encode()
            body = len(name).to_bytes(_KEY_LENGTH_BYTES, "little") + name + data
            self._channel.send(Frame.STORE, body)

    def get(self, key: str) -> bytes:
        """What either end has set; waits for it."""
        while key not in self._values:
            self._hear(key)
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Until all are set, or the handshake's deadline has passed."""
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)

    def close(self) -> None:
        """The connection is used for something else from here on."""
        self._channel = None

    def _hear(self, awaited: str) -> None:
        """One more value of the other end's."""
        if self._channel is None:
            raise ProtocolError(f"{awaited!r} was not set while this pair shook hands")
        body = self._channel.receive_body(Frame.STORE)
        begin = _KEY_LENGTH_BYTES
        end = begin + int.from_bytes(body[:begin], "little")
        if len(body) < end or len(self._values) >= _MOST_KEYS:
            self._channel.refuse(f"a value of {len(body)} bytes without a whole name, or too many")
        self._values[body[begin:end].decode(errors="replace")] = body[end:]
