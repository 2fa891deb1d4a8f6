"""How messages get into slots and out of them: what the ports' rules are applied to.

Two implementations, equal on the wire: `plain_mail` in Python, slow and obvious, and `native_mail`,
one call of C++ a message. A node's peers need not use the same one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Protocol

from torch import Tensor

from megainfer.device import Device
from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.slotted.payloads import Payloads
from megainfer.m2n.slotted.sleeper import OwnBell, Sleeper

TO_ATTENTION = frozenset({Kind.REPLY, Kind.ERROR})
TO_EXPERT = frozenset({Kind.DISPATCH, Kind.REST})


@dataclass(frozen=True, slots=True)
class Memory:
    """Whose slots are where.

    own: this node's region. peers: theirs, in node order, None of those that are yet to be met.
    rings: whether a peer that is met has a bell that can be rung here; if not, the wire rings.
    """

    own: mmap
    peers: Sequence[mmap | None]
    rings: bool = False


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A peer that was met: its region, and the eventfd that is its bell (-1: the wire rings).

    payloads: those of its slots, where they are not in the region.
    """

    index: int
    region: mmap
    bell: int = -1
    payloads: Payloads | None = None


class Tally(Protocol):
    """`counters.Counters`, whoever counts."""

    dropped: int

    def sent(self, header: Header) -> None: ...

    def as_dict(self) -> dict[str, int]: ...


class Mail(Protocol):
    """What both sides share.

    rings: whether sending rings the receiver's bell; if not, the caller does.
    """

    rings: bool

    @property
    def device(self) -> Device:
        """See `mailbox.Port.device`."""

    @property
    def counters(self) -> Tally: ...

    def news(self) -> bool:
        """Whether `scan` would find a message that was not dealt with."""

    def scan(self, since: int | None) -> list[tuple[int, Header]]:
        """See `inbox.Inbox.scan`."""

    def set_epoch(self, epoch: int, members: Collection[int]) -> None:
        """members: the peers that take part in this epoch; the others are sent nothing."""

    def admit(self, newcomer: Newcomer) -> None:
        """From now on this is who its index means."""

    def dismiss(self, peer: int) -> None:
        """Touch this peer's region and bell no more."""

    def sleeper(self, bell: OwnBell, spin_seconds: float) -> Sleeper:
        """One that wakes for news in these slots, having spun for at most `spin_seconds`."""

    def close(self) -> None:
        """Touch the peers' regions and bells no more."""


class AttentionMail(Mail, Protocol):
    def dispatch(
        self, micro_batch: int, layer: int, sequence: int, hidden: Tensor, parts: Sequence[Part]
    ) -> None:
        """Send each expert node that is a member its part of `hidden` [T, D].

        Raises ProtocolError for a row that `hidden` hasn't.
        """

    def rest(self, micro_batch: int, sequence: int) -> None: ...

    def combine(self, micro_batch: int, parts: Sequence[Part], out: Tensor) -> None:
        """Add the replies to these parts into `out` [T, D], in node order.

        Raises ProtocolError for a row that `out` hasn't.
        """

    def error_text(self, header: Header) -> str:
        """What an ERROR says."""


class ExpertMail(Mail, Protocol):
    def payload(self, slot: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Views of a dispatch: hidden [R, D], local ids int32 [R, K], weights float32 [R, K], and
        its count (see `mailbox.Dispatch`)."""

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """View of the reply's sums [R, D], which from here on are being written."""

    def reply(self, dispatch: Dispatch) -> None: ...

    def reply_error(self, dispatch: Dispatch, text: bytes) -> None: ...
