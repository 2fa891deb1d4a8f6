"""The front ends of an attention node: any number of them, which come and go."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

import msgspec

from megainfer.attention_node.link import FrontEndLink
from megainfer.errors import MegaInferError, NodeDied
from megainfer.messages.requests import (
    Abort,
    FromNode,
    NodeReady,
    RequestFailed,
    Submit,
    TokenEvent,
    Tokens,
    ToNode,
)
from megainfer.messages.to_child import FrontEndDown, FrontEndUp

CONNECT_SECONDS = 0.2
"""A front end listens before nodes hear of it: for so long nothing else is done meanwhile."""
LOOK_SECONDS = 1.0
"""How often links are looked after: those that couldn't be had, and those that are lost."""
LOST_SECONDS = 5.0
"""By then the supervisor has said that a front end is gone to which the connection was lost."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _FrontEnd:
    """lost_at: when its link was first seen to be lost."""

    incarnation: int
    link: FrontEndLink
    lost_at: float | None = None


class FrontEnds:
    """Requests in, from all of them; tokens out, each to whose request it is.

    endpoint: where a front end listens, by its number and incarnation. ready: what each is told
    first. A front end that goes, or reads nothing, is closed, and its requests are aborted.
    """

    def __init__(self, endpoint: Callable[[int, int], str], ready: NodeReady) -> None:
        self._endpoint = endpoint
        self._ready = ready
        self._front_ends: dict[int, _FrontEnd] = {}
        self._missed: dict[int, int] = {}  # incarnations of those that couldn't be reached
        self._next_look = 0.0
        self._owners: dict[str, int] = {}  # by request id; until its last event
        self._orphans: deque[str] = deque()  # of those that are gone; still to be aborted

    def hear(self, message: FrontEndUp | FrontEndDown) -> None:
        """One came, or is gone."""
        current = self._front_ends.get(message.server)
        if isinstance(message, FrontEndUp):
            if current is None or current.incarnation < message.incarnation:
                self._close(message.server)
                self._connect(message.server, message.incarnation)
            return
        if self._missed.get(message.server, message.incarnation + 1) <= message.incarnation:
            del self._missed[message.server]
        if current is not None and current.incarnation <= message.incarnation:
            self._close(message.server)

    def receive(self) -> Iterator[ToNode]:
        """Everything that has come in, and an Abort of each request whose front end is gone; never
        blocks. Raises NodeDied when the connection to one that lives was lost: what it was told
        last may not have come, and only another incarnation can be believed after that."""
        if (now := monotonic()) >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._look_after(now)
        while self._orphans:
            yield Abort(self._orphans.popleft())
        for server, front_end in list(self._front_ends.items()):
            for message in self._heard(server, front_end.link):
                if self._is_taken(server, message):
                    yield message

    def emit(self, message: FromNode) -> None:
        """Tell whom it concerns; never blocks."""
        if isinstance(message, Tokens):
            for server, events in self._by_owner(message.events).items():
                self._send(server, Tokens(message.node, events))
        elif isinstance(message, RequestFailed):
            owner = self._owners.pop(message.request_id, None)
            if owner is not None:
                self._send(owner, message)

    def pending(self) -> bool:
        """Whether `receive` would give something; ask before sleeping on `filenos`."""
        if self._orphans:
            return True
        return any(front_end.link.pending() for front_end in self._front_ends.values())

    def filenos(self) -> Sequence[int]:
        """Readable when `pending` may have become true."""
        return [front_end.link.fileno() for front_end in self._front_ends.values()]

    def close(self) -> None:
        for server in list(self._front_ends):
            self._close(server)

    def _connect(self, server: int, incarnation: int) -> None:
        node, own = self._ready.node, self._ready.incarnation
        try:
            link = FrontEndLink(self._endpoint(server, incarnation), node, own, CONNECT_SECONDS)
        except MegaInferError as error:  # it may have just died: that will be told, too
            log.warning("front end %d can't be reached: %s", server, error)
            self._missed[server] = incarnation
            return
        self._missed.pop(server, None)
        self._front_ends[server] = _FrontEnd(incarnation, link)
        self._send(server, self._ready)

    def _look_after(self, now: float) -> None:
        for server, incarnation in list(self._missed.items()):
            self._connect(server, incarnation)
        for server, front_end in self._front_ends.items():
            if front_end.lost_at is None and front_end.link.is_lost():
                front_end.lost_at = now
            if front_end.lost_at is not None and now - front_end.lost_at > LOST_SECONDS:
                raise NodeDied(f"it has lost its connection to front end {server}")

    def _close(self, server: int) -> None:
        if (front_end := self._front_ends.pop(server, None)) is None:
            return
        front_end.link.close()
        lost = [request_id for request_id, owner in self._owners.items() if owner == server]
        for request_id in lost:
            del self._owners[request_id]
        self._orphans += lost

    def _heard(self, server: int, link: FrontEndLink) -> list[ToNode]:
        try:
            return list(link.receive())
        except msgspec.MsgspecError as error:
            log.error("front end %d sent what can't be read, and is closed: %s", server, error)
            self._close(server)
            return []

    def _is_taken(self, server: int, message: ToNode) -> bool:
        """Whether the node is to hear it. Front ends name their requests so that no two are alike;
        should one not, it is refused, and can't end another's."""
        if isinstance(message, Abort):
            if self._owners.get(message.request_id) != server:
                return False
            del self._owners[message.request_id]  # nothing more is to be said of it
            return True
        if isinstance(message, Submit):
            if server not in self._front_ends:
                return False  # it was closed by what it said before
            return self._own(server, [message.request_id, *(name for name, _ in message.siblings)])
        return True

    def _own(self, server: int, request_ids: Sequence[str]) -> bool:
        """Of one message: all of them, or none."""
        others = [name for name in request_ids if self._owners.get(name, server) != server]
        if not others:
            self._owners.update(dict.fromkeys(request_ids, server))
            return True
        text = f"another front end has a request {others[0]!r}"
        for name in request_ids:
            self._send(server, RequestFailed(self._ready.node, name, text))
        return False

    def _by_owner(self, events: Sequence[TokenEvent]) -> dict[int, list[TokenEvent]]:
        told: dict[int, list[TokenEvent]] = {}
        for event in events:
            owner = self._owners.get(event.request_id)
            if owner is None:
                continue  # its front end is gone
            told.setdefault(owner, []).append(event)
            if event.finish_reason is not None:
                del self._owners[event.request_id]
        return told

    def _send(self, server: int, message: FromNode) -> None:
        try:
            self._front_ends[server].link.send(message)
        except NodeDied as error:
            log.warning("front end %d: %s", server, error)
            self._close(server)
