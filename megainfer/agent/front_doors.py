"""What an attention node of this host takes for the front ends, which are on another."""

import os
from collections.abc import Iterator

import zmq

from megainfer.frontend.node_socket import MAX_MESSAGE_BYTES
from megainfer.launch.plan import Plan
from megainfer.messages.hosts import ForFrontEnd, ForNode
from megainfer.messages.requests import node_identity

_MOST_WAITING = 100_000  # messages; as many as a node lets wait (attention_node/link.py)
_LINGER_MS = 200


class FrontDoors:
    """A socket for each front end, at which the node (index, incarnation) connects as it would to
    the front end itself. plan: whose `front_token` is this host's own."""

    def __init__(self, plan: Plan, node: int, incarnation: int) -> None:
        self._plan = plan
        self._identity = node_identity(node, incarnation)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None  # has threads: not yet
        self._doors: dict[tuple[int, int], zmq.Socket[bytes]] = {}

    def open(self, server: int, incarnation: int) -> None:
        """Before the node hears of this front end."""
        if self._context is None:
            self._context = zmq.Context()
        door = self._context.socket(zmq.ROUTER)
        door.setsockopt(zmq.IPC_FILTER_UID, os.getuid())  # others can read its name in /proc
        door.setsockopt(zmq.SNDHWM, _MOST_WAITING)
        door.setsockopt(zmq.RCVHWM, _MOST_WAITING)
        door.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        door.setsockopt(zmq.LINGER, _LINGER_MS)
        door.bind(self._plan.front_endpoint(server, incarnation))
        self._doors[server, incarnation] = door

    def shut(self, server: int, incarnation: int) -> None:
        """It is gone."""
        if (door := self._doors.pop((server, incarnation), None)) is not None:
            door.close()

    def give(self, message: ForNode) -> None:
        """To the node; what it can't be given is lost with the one or the other."""
        if (door := self._doors.get((message.server, message.incarnation))) is not None:
            door.send_multipart([self._identity, message.data], zmq.DONTWAIT)

    def taken(self) -> Iterator[ForFrontEnd]:
        """What the node has said; never blocks."""
        for (server, incarnation), door in self._doors.items():
            while _pending(door):
                identity, *frames = door.recv_multipart(zmq.DONTWAIT)
                if identity == self._identity and len(frames) == 1:
                    yield ForFrontEnd(server, incarnation, frames[0])

    @property
    def pending(self) -> bool:
        """Whether `taken` would give something; ask before sleeping on `filenos`."""
        return any(map(_pending, self._doors.values()))

    def filenos(self) -> list[int]:
        """Readable when `pending` may have become true."""
        return [int(door.getsockopt(zmq.FD)) for door in self._doors.values()]

    def close(self) -> None:
        for door in self._doors.values():
            door.close()
        self._doors.clear()
        if self._context is not None:
            self._context.term()


def _pending(door: "zmq.Socket[bytes]") -> bool:
    events = door.getsockopt(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & zmq.POLLIN)
