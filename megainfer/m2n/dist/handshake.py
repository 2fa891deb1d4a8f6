"""How two nodes that a network joins become a pair: proof, HELLO, and the pair's groups.

attention node                               expert node
    PROOF, see `proof`   <->   CHALLENGE, PROOF
    HELLO                -->   version, role, each field of the geometry, index
    the same             <--   HELLO
    GROUPS               -->   the same kind of groups
    the same             <--   GROUPS
    STORE, several       <->   STORE, several: torch makes the groups, see `pair_store`
    a byte over each group, so that their connections are there
    connected            <--   WELCOME, once the expert node knows it
"""

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megainfer.errors import NodeDied, ProtocolError
from megainfer.m2n.dist.channel import Channel as PayloadChannel
from megainfer.m2n.dist.groups import CODES, Groups, open_channels
from megainfer.m2n.dist.pair_store import PairStore
from megainfer.m2n.dist.proof import demand_proof, give_proof
from megainfer.m2n.host.handshake import Channel, Frame, Hello, Side
from megainfer.m2n.roads import Seat
from megainfer.tls.peers import PeerTls
from megainfer.tls.stream import TlsSocket

_GROUPS = struct.Struct("<I36s")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a node brings to each handshake."""

    seat: Seat
    key: bytes
    groups: Groups
    tls: PeerTls | None = None

    def secured(self, connection: socket.socket, calls: bool) -> socket.socket:
        """See `secured`."""
        return secured(connection, self.tls, calls)


@dataclass(frozen=True, slots=True)
class Pair:
    """What a handshake has made; `connection` is quiet, and has no timeout of its own.

    same_clock: whether the other's monotonic clock is ours. out, back: to the peer, and from it.
    """

    index: int
    incarnation: int
    connection: socket.socket
    same_clock: bool
    out: PayloadChannel
    back: PayloadChannel


def secured(connection: socket.socket, tls: PeerTls | None, calls: bool) -> socket.socket:
    """As it is spoken on, which takes it over. calls: whether this is the side that has
    connected."""
    return connection if tls is None else TlsSocket(connection, tls.end(calls))


def welcome(connection: socket.socket, terms: Terms, deadline: float) -> Pair:
    """The expert node's part, but for the word that ends it: see `admitted`.

    Raises NodeDied or ProtocolError.
    """
    channel = Channel(connection, deadline, "a node that connects")
    demand_proof(channel, terms.key)
    ours = Hello.of(Side.EXPERT, terms.seat)
    theirs = channel.receive_hello(ours, Side.ATTENTION)
    channel.peer = Side.ATTENTION.node(theirs.index)
    if theirs.index >= terms.seat.geometry.num_attention:
        limit = terms.seat.geometry.num_attention
        channel.refuse(f"index: expected one below {limit}, found {theirs.index}")
    channel.send(Frame.HELLO, ours.pack())
    return _joined(channel, connection, terms, Side.EXPERT, theirs)


def admitted(pair: Pair, deadline: float) -> None:
    """Tell an attention node that what it sends in the next epoch will be read."""
    name = Side.ATTENTION.node(pair.index)
    Channel(pair.connection, deadline, name).send(Frame.WELCOME, b"")


def greet(
    connection: socket.socket, terms: Terms, expert: tuple[int, int], deadline: float
) -> Pair:
    """The attention node's part with an expert node (index, incarnation), as `welcome`."""
    index, incarnation = expert
    channel = Channel(connection, deadline, Side.EXPERT.node(index))
    give_proof(channel, terms.key)
    ours = Hello.of(Side.ATTENTION, terms.seat)
    channel.send(Frame.HELLO, ours.pack())
    theirs = channel.receive_hello(ours, Side.EXPERT)
    if (theirs.index, theirs.incarnation) != expert:
        found = f"{theirs.index}.{theirs.incarnation}"
        channel.refuse(f"index: expected {index}.{incarnation} at this address, found {found}")
    pair = _joined(channel, connection, terms, Side.ATTENTION, theirs)
    channel.receive(Frame.WELCOME, 0)
    return pair


def _joined(
    channel: Channel, connection: socket.socket, terms: Terms, own: Side, theirs: Hello
) -> Pair:
    """The groups of both."""
    boot_id = _boot_id()
    channel.send(Frame.GROUPS, _GROUPS.pack(CODES[terms.groups.kind], boot_id))
    code, other_boot_id = _GROUPS.unpack(channel.receive(Frame.GROUPS, _GROUPS.size)[0])
    if code != CODES[terms.groups.kind]:
        names = {value: name for name, value in CODES.items()}
        found = names.get(code, f"unknown code {code}")
        channel.refuse(f"groups differ: it has {found}, this has {terms.groups.kind}")
    out, back = met_channels(channel, terms.groups, calls=own is Side.ATTENTION)
    same_clock = boot_id == other_boot_id
    return Pair(theirs.index, theirs.incarnation, connection, same_clock, out, back)


def met_channels(
    channel: Channel, groups: Groups, *, calls: bool
) -> tuple[PayloadChannel, PayloadChannel]:
    """As `open_channels`, with the peer of a handshake, by whose name errors are. Raises NodeDied,
    ProtocolError."""
    store = PairStore(channel)
    with _named(channel.peer):
        out, back = open_channels(groups, store, calls=calls)
    store.close()
    return out, back


@contextlib.contextmanager
def _named(peer: str) -> Iterator[None]:
    """Torch's errors know no node; those of the pair's store do."""
    try:
        yield
    except (NodeDied, ProtocolError) as error:
        if str(error).startswith(peer):
            raise
        raise type(error)(f"{peer}: {error}") from error


def _boot_id() -> bytes:
    """Which boot of which machine this is: its monotonic clock is one for all of its processes."""
    return _BOOT_ID.read_text().strip().encode()
