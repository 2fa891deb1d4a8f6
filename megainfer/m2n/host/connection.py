"""The connection of one attention node and one expert node: who meets, and what they hand over."""

import contextlib
import io
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from mmap import mmap

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import PayloadRoom
from megainfer.m2n.host.handshake import NO_DEVICE, Channel, Frame, Hello, Side
from megainfer.m2n.host.region import Bell, create_region, map_region
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.mail import Newcomer
from megainfer.m2n.slotted.payloads import DeviceMemory, Payloads, SharedPayloads


@dataclass(frozen=True, slots=True)
class OwnEnd:
    """A node's own slots and bell, which all its peers get, and the payloads of those slots where
    these are on a device: `memory` has made them, and takes over the peers'."""

    file: io.FileIO
    slots: mmap
    bell: Bell
    memory: DeviceMemory | None = None
    payloads: SharedPayloads | None = None

    @classmethod
    def create(
        cls, size: int, memory: DeviceMemory | None = None, room: PayloadRoom | None = None
    ) -> "OwnEnd":
        """size: bytes of the slots. room: what their payloads take of the device's memory."""
        payloads = None if memory is None or room is None else memory.allocate(room)
        file = create_region(size)
        return cls(file, map_region(file, size), Bell.create(), memory, payloads)

    @property
    def device(self) -> bytes:
        """See `handshake.Hello`."""
        return NO_DEVICE if self.memory is None else self.memory.uuid

    def hand_over(self, channel: Channel) -> None:
        descriptors = [self.file.fileno(), self.bell.fileno()]
        if self.payloads is not None:
            descriptors.append(self.payloads.fileno())
        channel.send(Frame.MEMORY, b"", descriptors)

    def adopt(self, files: Sequence[io.FileIO], room: PayloadRoom, owner: bytes) -> Payloads | None:
        """A peer's payloads, on the device `owner`; None where they are in its slots."""
        if self.memory is None:
            return None
        (file,) = files
        return self.memory.adopt(file, room, owner)

    def withdraw(self) -> None:
        """Nobody more gets them."""
        self.file.close()
        if self.payloads is not None:
            self.payloads.withdraw()

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
    payloads: Payloads | None = None

    def ring(self) -> None:
        self.bell.ring()

    def newcomer(self) -> Newcomer:
        """What a mail has to know of it."""
        return Newcomer(self.index, self.slots, self.bell.fileno(), self.payloads)

    def close(self) -> None:
        self.connection.close()
        self.bell.close()


Admit = Callable[[Peer], None]


def welcome(connection: socket.socket, seat: Seat, own: OwnEnd, deadline: float) -> Peer:
    """The expert node's part of the handshake, but for the word that ends it: see `admitted`."""
    channel = Channel(connection, deadline, "a node that connects")
    ours = Hello.of(Side.EXPERT, seat, own.device)
    theirs = channel.receive_hello(ours, Side.ATTENTION)
    channel.peer = Side.ATTENTION.node(theirs.index)
    if theirs.index >= seat.geometry.num_attention:
        limit = seat.geometry.num_attention
        channel.refuse(f"index: expected one below {limit}, found {theirs.index}")
    channel.send(Frame.HELLO, ours.pack())
    own.hand_over(channel)
    size, room = seat.geometry.attention_region_bytes, seat.geometry.attention_payloads
    return _take_over(channel, connection, own, theirs, (size, room))


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
    ours = Hello.of(Side.ATTENTION, seat, own.device)
    channel.send(Frame.HELLO, ours.pack())
    theirs = channel.receive_hello(ours, Side.EXPERT)
    if (theirs.index, theirs.incarnation) != expert:
        found = f"{theirs.index}.{theirs.incarnation}"
        channel.refuse(f"index: expected {index}.{incarnation} at this address, found {found}")
    size, room = seat.geometry.expert_region_bytes, seat.geometry.expert_payloads
    peer = _take_over(channel, connection, own, theirs, (size, room))
    with contextlib.ExitStack() as undo:
        undo.callback(peer.close)
        own.hand_over(channel)
        channel.receive(Frame.WELCOME, 0)
        undo.pop_all()
    return peer


def _take_over(
    channel: Channel,
    connection: socket.socket,
    own: OwnEnd,
    theirs: Hello,
    sizes: tuple[int, PayloadRoom],
) -> Peer:
    """What the peer hands over. sizes: of its region, and of its payloads if they are elsewhere."""
    _, files = channel.receive(Frame.MEMORY, 0)
    with contextlib.ExitStack() as undo:
        for file in files:
            undo.callback(file.close)
        expected = ["slots", "bell"] if own.memory is None else ["slots", "bell", "payloads"]
        if len(files) != len(expected):
            what = " and ".join(expected)
            channel.refuse(f"{len(files)} file descriptors, expected {len(expected)}: {what}")
        region, bell, *others = files
        try:
            slots = map_region(region, sizes[0])
            payloads = own.adopt(others, sizes[1], theirs.device)
        except ProtocolError as error:
            channel.refuse(str(error))
        undo.pop_all()
    for file in (region, *others):
        file.close()
    return Peer(theirs.index, theirs.incarnation, connection, slots, Bell(bell), payloads)
