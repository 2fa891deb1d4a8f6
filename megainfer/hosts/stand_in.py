"""The process that stands in for a node of another host: a child of the supervisor as any node is.

What either side says it passes on, so that neither knows of the way between them: what the
supervisor, front ends and the node say. It dies when the node does, and of the same; its own end,
however it comes, ends the node (`agent/attendant.py`).
"""

import logging
import socket
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep

from msgspec import structs

from megainfer.attention_node.link import FrontEndLink
from megainfer.errors import MegaInferError, NodeDied
from megainfer.hosts.wire import Wire, poll
from megainfer.launch.plan import Plan
from megainfer.launch.station import Station
from megainfer.messages.from_child import Fatal, Spans, Stats
from megainfer.messages.hosts import (
    ForFrontEnd,
    ForNode,
    FromAttendant,
    LogLines,
    NodeEnded,
    Refused,
    StartNode,
    from_attendant_decoder,
)
from megainfer.messages.message import Role
from megainfer.messages.supervision import FromChild
from megainfer.messages.to_child import FrontEndDown, FrontEndUp
from megainfer.tls.peers import PeerTls

log = logging.getLogger(__name__)

CONNECT_SECONDS = 0.2
"""As a node gives a front end, which listens before nodes hear of it."""
LOST_SECONDS = 5.0
"""By then the supervisor has said that a front end is gone to which the connection was lost."""
_RETRY_SECONDS = 0.1
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class There:
    """Where a node is to be: the host's name, and where its agent listens. token, tls: as
    `Reception`."""

    host: str
    address: tuple[str, int]
    token: bytes
    tls: PeerTls | None = None


def run_stand_in(station: Station, plan: Plan, there: There, start: StartNode) -> None:
    """Everything that the stand-in of a node does after the fork."""
    try:
        _StandIn(station, plan, there, start).run()
    except MegaInferError as error:  # the node may well be alive, but nobody hears it
        end(station, str(error), befell=True)


def end(station: Station, words: str, befell: bool) -> None:
    """Say why it ends."""
    with suppress(NodeDied):  # the supervisor itself is gone: nobody to tell
        station.link.send(Fatal(words, befell))


def dialled(there: There, lease: float) -> Wire[FromAttendant]:
    """To the agent there, trying again until the lease is over. Raises NodeDied."""
    name = f"host {there.host}"
    deadline = monotonic() + lease
    while True:
        try:
            connection = socket.create_connection(there.address, timeout=lease)
        except OSError as error:
            if monotonic() + _RETRY_SECONDS > deadline:
                raise NodeDied(f"{name} can't be reached: {error}") from error
            sleep(_RETRY_SECONDS)  # nothing tells when somebody begins to listen
        else:
            break
    return Wire(connection, there.token, from_attendant_decoder, name, True, lease, tls=there.tls)


def tell_ended(station: Station, host: str, message: NodeEnded | Refused) -> None:
    """How it has ended there."""
    if isinstance(message, Refused):
        end(station, f"host {host} refuses it: {message.reason}", befell=False)
    elif message.cause is not None:
        end(station, f"{message.cause} (on host {host})", message.befell)


def print_lines(whose: str, lines: list[str]) -> None:
    """What was written there."""
    with suppress(OSError):  # nobody reads what is printed: no node dies of that
        for line in lines:
            print(f"{whose} | {line}", flush=True)


def _here(spans: Spans, ahead: float) -> Spans:
    """On this host's clock. ahead: seconds by which that of the node's host is."""
    moved = [span._replace(start=span.start - ahead, end=span.end - ahead) for span in spans.spans]
    return structs.replace(spans, spans=moved)


class _StandIn:
    def __init__(self, station: Station, plan: Plan, there: There, start: StartNode) -> None:
        self._link = station.link
        self._station = station
        self._plan = plan
        self._there = there
        self._start = start
        self._name = f"{start.role}-{start.node}"
        self._front_ends: dict[tuple[int, int], FrontEndLink] = {}
        self._lost_at: dict[tuple[int, int], float] = {}
        self._missed: list[FrontEndUp] = []  # still to be met
        self._wire = dialled(there, start.lease)

    def run(self) -> None:
        self._wire.send(self._start)
        while True:
            self._hear_front_ends()
            for message in self._wire.pump():
                if isinstance(message, NodeEnded | Refused):
                    tell_ended(self._station, self._there.host, message)
                    return
                self._pass_on(message)
            self._hear_supervisor()
            if self._wire.is_crowded:
                poll([self._wire], _LOOK_SECONDS, self._link.fileno())
            elif not any(link.pending() for link in self._front_ends.values()):
                fronts = [link.fileno() for link in self._front_ends.values()]
                poll([self._wire], _LOOK_SECONDS, self._link.fileno(), *fronts)

    def _pass_on(self, message: FromAttendant) -> None:
        """What the node, or its host, says."""
        match message:
            case ForFrontEnd():
                self._tell_front_end(message)
            case LogLines(lines=lines):
                print_lines(f"{self._there.host} {self._name}", lines)
            case Fatal():
                pass  # NodeEnded says it again
            case Stats():
                self._link.offer(message)
            case Spans():
                self._link.send(_here(message, self._wire.other_clock.ahead))
            case _ if isinstance(message, FromChild):
                self._link.send(message)

    def _hear_supervisor(self) -> None:
        while (message := self._link.receive(timeout=0)) is not None:
            if isinstance(message, FrontEndUp):
                self._missed.append(message)
                continue
            if isinstance(message, FrontEndDown):
                self._leave(message)
            self._wire.send(message)
        self._meet_front_ends()

    # --- front ends ---------------------------------------------------------------------------

    def _meet_front_ends(self) -> None:
        """What a node does, in its place; the node hears of those that were met."""
        assert not self._missed or self._start.role is Role.ATTENTION, "others hear of none"
        missed, self._missed = self._missed, []
        for up in missed:
            endpoint = self._plan.front_endpoint(up.server, up.incarnation)
            own = self._start.node, self._start.incarnation
            try:
                link = FrontEndLink(endpoint, *own, CONNECT_SECONDS)
            except MegaInferError as error:  # it may have just died: that will be told, too
                log.warning("front end %d can't be reached: %s", up.server, error)
                self._missed.append(up)
            else:
                self._front_ends[up.server, up.incarnation] = link
                self._wire.send(up)

    def _leave(self, down: FrontEndDown) -> None:
        """An incarnation of a front end, and those before it."""
        self._missed = [
            up
            for up in self._missed
            if up.server != down.server or up.incarnation > down.incarnation
        ]
        self._lost_at.pop((down.server, down.incarnation), None)
        if (link := self._front_ends.pop((down.server, down.incarnation), None)) is not None:
            link.close()

    def _tell_front_end(self, message: ForFrontEnd) -> None:
        """One that reads nothing any more is closed, and to the node it is gone."""
        link = self._front_ends.get((message.server, message.incarnation))
        if link is None:
            return
        try:
            link.send_bytes(message.data)
        except NodeDied as error:
            log.warning("front end %d: %s", message.server, error)
            down = FrontEndDown(message.server, message.incarnation)
            self._leave(down)
            self._wire.send(down)

    def _hear_front_ends(self) -> None:
        for (server, incarnation), link in list(self._front_ends.items()):
            for data in link.receive_bytes():
                self._wire.send(ForNode(server, incarnation, data))
                if self._wire.is_crowded:
                    break  # ZeroMQ keeps the others, and holds up who sends too many
            if link.is_lost():
                self._check_lost(server, incarnation)

    def _check_lost(self, server: int, incarnation: int) -> None:
        lost_at = self._lost_at.setdefault((server, incarnation), monotonic())
        if monotonic() - lost_at > LOST_SECONDS:
            raise NodeDied(f"its stand-in has lost its connection to front end {server}")
