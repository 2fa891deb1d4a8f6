"""The connection of one attention node and one expert node: who meets, and what they hand over."""

import contextlib
import io
import socket
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap

from megainfer.errors import ProtocolError
from megainfer.m2n.host.handshake import Channel, Frame, Hello, Side
from megainfer.m2n.host.region import Bell, create_region, map_region
from megainfer.m2n.roads import Seat


@dataclass(frozen=True, slots=True)
class OwnEnd:
    """A node's own slots and bell, which all its peers get."""

    file: io.FileIO
    slots: mmap
    bell: Bell

    @classmethod
    def create(cls, size: int) -> "OwnEnd":
        file = create_region(size)
        return cls(file, map_region(file, size), Bell.create())

    def hand_over(self, channel: Channel) -> None:
        channel.send(Frame.MEMORY, b"", [self.file.fileno(), self.bell.fileno()])

    def withdraw(self) -> None:
        """Nobody more gets them."""
        self.file.close()

    def close(self) -> None:
        self.withdraw()
        self.bell.close()


@dataclass(frozen=True, slots=True)
class Peer:
    """What we hold of a connected peer. `connection` says nothing more until it ends."""

    index: int
    incarnation: int
    connection: socket.socket
    slots: mmap
    bell: Bell

    def close(self) -> None:
        self.connection.close()
        self.bell.close()


Admit = Callable[[Peer], None]


def welcome(connection: socket.socket, seat: Seat, own: OwnEnd, deadline: float) -> Peer:
    """The expert node's part of the handshake, but for the word that ends it: see `admitted`."""
    channel = Channel(connection, deadline, "a node that connects")
    ours = Hello.of(Side.EXPERT, seat)
    theirs = channel.receive_hello(ours, Side.ATTENTION)
    channel.peer = Side.ATTENTION.node(theirs.index)
    if theirs.index >= seat.geometry.num_attention:
        limit = seat.geometry.num_attention
        channel.refuse(f"index: expected one below {limit}, found {theirs.index}")
    channel.send(Frame.HELLO, ours.pack())
    own.hand_over(channel)
    size = seat.geometry.attention_region_bytes
    return _take_over(channel, connection, size, theirs.index, theirs.incarnation)


def admitted(peer: Peer, deadline: float) -> None:
    """Tell an attention node that this expert node knows it: what it sends in the next epoch will
    be read."""
    name = Side.ATTENTION.node(peer.index)
    Channel(peer.connection, deadline, name).send(Frame.WELCOME, b"")


def greet(
    connection: socket.socket, seat: Seat, own: OwnEnd, expert: tuple[int, int], deadline: float
) -> Peer:
    """The attention node's part of the handshake with an expert node: its index, incarnation."""
    index, incarnation = expert
    channel = Channel(connection, deadline, Side.EXPERT.node(index))
    ours = Hello.of(Side.ATTENTION, seat)
    channel.send(Frame.HELLO, ours.pack())
    theirs = channel.receive_hello(ours, Side.EXPERT)
    if (theirs.index, theirs.incarnation) != expert:
        found = f"{theirs.index}.{theirs.incarnation}"
        channel.refuse(f"index: expected {index}.{incarnation} at this address, found {found}")
    size = seat.geometry.expert_region_bytes
    peer = _take_over(channel, connection, size, index, incarnation)
    with contextlib.ExitStack() as undo:
        undo.callback(peer.close)
        own.hand_over(channel)
        channel.receive(Frame.WELCOME, 0)
        undo.pop_all()
    return peer


def _take_over(
    channel: Channel, connection: socket.socket, region_bytes: int, index: int, incarnation: int
) -> Peer:
    _, files = channel.receive(Frame.MEMORY, 0)
    with contextlib.ExitStack() as undo:
        for file in files:
            undo.callback(file.close)
        if len(files) != 2:
            channel.refuse(f"{len(files)} file descriptors, expected 2: slots and bell")
        region, bell = files
        try:
            slots = map_region(region, region_bytes)
        except ProtocolError as error:
            channel.refuse(str(error))
        undo.pop_all()
    region.close()
    return Peer(index, incarnation, connection, slots, Bell(bell))
