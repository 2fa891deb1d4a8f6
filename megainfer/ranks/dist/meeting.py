"""How rank 0 and a rank of another host meet, when that has loaded its part.

the rank                                     rank 0, which listens since it began
    PROOF, see `m2n.dist.proof`   <->   CHALLENGE, PROOF
    RANK   (rank, incarnation)    -->   and of which node, with which layout of what they tell
    the same                      <--   RANK
    STORE, several                <->   STORE, several: torch makes the groups
    a byte over each group, so that their connections are there
    connected                     <--   WELCOME
"""

import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from megainfer.m2n.dist.channel import Channel as PayloadChannel
from megainfer.m2n.dist.groups import GlooGroups
from megainfer.m2n.dist.handshake import met_channels, secured
from megainfer.m2n.dist.listening import Address, dial_tcp
from megainfer.m2n.dist.proof import checked_key, demand_proof, give_proof
from megainfer.m2n.host.handshake import Channel, Frame
from megainfer.ranks.dist.line import LOST_SECONDS, Line
from megainfer.ranks.road import LOADING_SECONDS
from megainfer.tls.peers import PeerTls, TlsFiles

_PURPOSE = b"megainfer ranks 1 "
_RANK = struct.Struct("<IQ")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a rank brings to each meeting. node: its node's name. host: at which address gloo
    listens. key: the instance's, of M2N. patience: see `line.patience_for`."""

    node: str
    incarnation: int
    host: str
    key: str
    tls: TlsFiles | None = None
    patience: float = LOST_SECONDS


class Ends(NamedTuple):
    """What leads to another rank."""

    line: Line
    out: PayloadChannel
    back: PayloadChannel

    def close(self) -> None:
        self.line.close()
        self.out.abort()
        self.back.abort()


class Meeting:
    """Of one rank with others. layout: of what they tell each other. Raises ConfigError where gloo
    can't listen, or the key is none."""

    def __init__(self, terms: Terms, layout: Any) -> None:
        self._terms = terms
        self._layout = layout
        self._key = checked_key(terms.key)
        self._groups = GlooGroups(terms.host)
        self._tls = None if terms.tls is None else PeerTls(terms.tls)

    def welcome(
        self, connection: socket.socket, missing: Collection[int], deadline: float
    ) -> tuple[int, Ends]:
        """Rank 0's part with whoever has connected, who has to be one of those that are missing; in
        a thread of its own, if need be. Raises NodeDied, ProtocolError; the connection is closed
        then."""
        connection = secured(connection, self._tls, calls=False)
        try:
            channel = Channel(connection, deadline, "whoever connects")
            demand_proof(channel, self._key, _PURPOSE)
            rank = self._check(channel, channel.receive_body(Frame.RANK))
            if rank not in missing:
                channel.refuse(f"rank {rank} isn't expected; these are: {sorted(missing)}")
            channel.peer = f"rank {rank} of {self._terms.node}"
            channel.send(Frame.RANK, self._own(0))
            ends = self._joined(channel, connection, calls=False)
            channel.send(Frame.WELCOME, b"")
        except BaseException:
            connection.close()
            raise
        return rank, ends

    def greet(self, rank: int, leader: Address) -> Ends:
        """The part of any other rank. Rank 0 may still be at its start, before it lets anybody in.
        Raises NodeDied, ProtocolError."""
        name = f"rank 0 of {self._terms.node}"
        deadline = monotonic() + LOADING_SECONDS
        connection = secured(dial_tcp(leader, name, deadline), self._tls, calls=True)
        try:
            channel = Channel(connection, deadline, name)
            give_proof(channel, self._key, _PURPOSE)
            channel.send(Frame.RANK, self._own(rank))
            self._check(channel, channel.receive_body(Frame.RANK))
            ends = self._joined(channel, connection, calls=True)
            channel.receive(Frame.WELCOME, 0)
        except BaseException:
            connection.close()
            raise
        return ends

    def close(self) -> None:
        """Nobody else is met."""
        self._groups.close()

    def _joined(self, channel: Channel, connection: socket.socket, *, calls: bool) -> Ends:
        out, back = met_channels(channel, self._groups, calls=calls)
        return Ends(Line(connection, channel.peer, self._terms.patience), out, back)

    def _own(self, rank: int) -> bytes:
        return _RANK.pack(rank, self._terms.incarnation) + self._description

    @property
    def _description(self) -> bytes:
        """What both have to agree upon."""
        return f"{self._terms.node}, {self._layout}".encode()

    def _check(self, channel: Channel, body: bytes) -> int:
        """The other's rank. Raises ProtocolError."""
        if len(body) < _RANK.size:
            channel.refuse(f"a RANK of {len(body)} bytes")
        rank, incarnation = _RANK.unpack(body[: _RANK.size])
        ours, theirs = self._description, body[_RANK.size :]
        if ours != theirs:
            there = theirs.decode(errors="replace")
            channel.refuse(f"it is a rank of {there!r:.400}, this is one of {ours.decode()!r}")
        if incarnation != self._terms.incarnation:
            own = self._terms.incarnation
            channel.refuse(f"it is of incarnation {incarnation} of its node, this is of {own}")
        return int(rank)
