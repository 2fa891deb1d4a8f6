"""What an attendant passes on between its connection and the process that it attends to."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from megainfer.agent.front_doors import FrontDoors
from megainfer.errors import NodeDied, ProtocolError
from megainfer.hosts.wire import Wire
from megainfer.launch.control import ChildLink
from megainfer.messages.hosts import ForNode, ToAttendant
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import FrontEndDown, FrontEndUp
from megainfer.supervise.child import SEND_SECONDS, Child
from megainfer.supervise.deaths import note_last
from megainfer.supervise.family import drain

ToWire = Wire[ToAttendant]


class Conversation(Protocol):
    def hear(self, message: ToAttendant) -> None:
        """From the connection. Raises ProtocolError where it is nothing for such a process."""

    def tell(self) -> None:
        """What the process has said; never blocks."""

    @property
    def is_pending(self) -> bool:
        """Whether there is more to tell; ask before sleeping on `filenos`."""

    def filenos(self) -> Sequence[int]:
        """Readable when there may be something to tell."""


class NodeConversation:
    """Of a node with its supervisor and front ends."""

    def __init__(self, wire: ToWire, child: Child, doors: FrontDoors) -> None:
        self._wire, self._child, self._doors = wire, child, doors

    def hear(self, message: ToAttendant) -> None:
        """See `Conversation`."""
        match message:
            case ForNode():
                self._doors.give(message)
                return
            case FrontEndUp(server=server, incarnation=incarnation):
                self._doors.open(server, incarnation)
            case FrontEndDown(server=server, incarnation=incarnation):
                self._doors.shut(server, incarnation)
            case _ if not isinstance(message, ToChild):
                raise ProtocolError(f"{self._wire.name} said {type(message).__name__}")
        self._child.send(message)

    def tell(self) -> None:
        """See `Conversation`; of ranks but the first their last words are heard."""
        for rank in self._child.ranks:
            for said in drain(rank):
                note_last(rank, said)
                if rank is self._child:
                    self._wire.send(said)
        for token in self._doors.taken():
            self._wire.send(token)
            if self._wire.is_crowded:
                break  # ZeroMQ keeps the others

    @property
    def is_pending(self) -> bool:
        return self._doors.pending and not self._wire.is_crowded

    def filenos(self) -> Sequence[int]:
        """See `Conversation`."""
        return [] if self._wire.is_crowded else self._doors.filenos()


class RankConversation:
    """Of a rank with the first of its node, which is on another host. link: the rank's, on which
    that speaks by way of this."""

    is_pending = False

    def __init__(self, wire: ToWire, child: Child, link: ChildLink) -> None:
        self._wire, self._child = wire, child
        self._link: ChildLink | None = link  # None once the rank has ended

    def hear(self, message: ToAttendant) -> None:
        """See `Conversation`."""
        if not isinstance(message, ToChild):
            raise ProtocolError(f"{self._wire.name} said {type(message).__name__}")
        if self._link is None:
            return
        with suppress(NodeDied):  # `tell` has yet to read what it said last
            self._link.offer(message, SEND_SECONDS)  # as `Child.send`

    def tell(self) -> None:
        """See `Conversation`."""
        for said in drain(self._child):
            note_last(self._child, said)
        try:
            while self._link is not None and (news := self._link.receive(timeout=0)) is not None:
                self._wire.send(news)
        except NodeDied:
            self._link = None

    def filenos(self) -> Sequence[int]:
        """See `Conversation`."""
        return [] if self._link is None else [self._link.fileno()]
