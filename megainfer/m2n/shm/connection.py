"""The connection of one attention node and one expert node: who meets, and what they hand over."""

import contextlib
import io
import socket
from dataclasses import dataclass
from mmap import mmap

from megainfer.errors import ProtocolError
from megainfer.m2n.roads import Seat
from megainfer.m2n.shm.handshake import Channel, Frame, Hello, Side
from megainfer.m2n.shm.region import Bell, create_region, map_region


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

    def close(self) -> None:
        self.file.close()
        self.bell.close()


@dataclass(frozen=True, slots=True)
class Peer:
    """What we hold of a connected peer. `connection` says nothing more until it ends."""

    connection: socket.socket
    slots: mmap
    bell: Bell

    def close(self) -> None:
        self.connection.close()
        self.bell.close()


def welcome(
    connection: socket.socket, seat: Seat, own: OwnEnd, taken: frozenset[int], deadline: float
) -> tuple[int, Peer]:
    """The expert node's part of the handshake; returns the attention node's index.

    taken: indices of those that are connected already.
    """
    channel = Channel(connection, deadline, "a node that connects")
    ours = Hello.of(Side.EXPERT, seat)
    theirs = channel.receive_hello(ours, Side.ATTENTION)
    channel.peer = Side.ATTENTION.node(theirs.index)
    if theirs.index >= seat.geometry.num_attention or theirs.index in taken:
        expected = sorted(set(range(seat.geometry.num_attention)) - taken)
        channel.refuse(f"index: expected one of {expected}, found {theirs.index}")
    channel.send(Frame.HELLO, ours.pack())
    own.hand_over(channel)
    return theirs.index, _take_over(channel, connection, seat.geometry.attention_region_bytes)


def greet(connection: socket.socket, seat: Seat, own: OwnEnd, expert: int, deadline: float) -> Peer:
    """The attention node's part of the handshake with expert node `expert`."""
    channel = Channel(connection, deadline, Side.EXPERT.node(expert))
    ours = Hello.of(Side.ATTENTION, seat)
    channel.send(Frame.HELLO, ours.pack())
    theirs = channel.receive_hello(ours, Side.EXPERT)
    if theirs.index != expert:
        channel.refuse(f"index: expected {expert} at this address, found {theirs.index}")
    peer = _take_over(channel, connection, seat.geometry.expert_region_bytes)
    with contextlib.ExitStack() as undo:
        undo.callback(peer.close)
        own.hand_over(channel)
        undo.pop_all()
    return peer


def _take_over(channel: Channel, connection: socket.socket, region_bytes: int) -> Peer:
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
    return Peer(connection, slots, Bell(bell))
