"""What a port has moved, for metrics."""

from dataclasses import asdict, dataclass

from megainfer.m2n.message import HEADER_BYTES, Header


@dataclass(slots=True)
class Counters:
    """Since the port was opened. `dropped`: messages of an older epoch that came in, and replies
    that were not sent because their epoch had ended. `transfer_ns`: over `transfers` messages that
    found the receiver waiting, from the beginning of the send to being noticed."""

    messages_sent: int = 0
    messages_received: int = 0
    rows_sent: int = 0
    rows_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    dropped: int = 0
    transfer_ns: int = 0
    transfers: int = 0

    def sent(self, header: Header) -> None:
        self.messages_sent += 1
        self.rows_sent += header.rows
        self.bytes_sent += HEADER_BYTES + header.length

    def received(self, header: Header) -> None:
        self.messages_received += 1
        self.rows_received += header.rows
        self.bytes_received += HEADER_BYTES + header.length

    def transferred(self, nanoseconds: int) -> None:
        self.transfer_ns += nanoseconds
        self.transfers += 1

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
