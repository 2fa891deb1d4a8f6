"""Measuring the way from one host to another, for `megainfer doctor`: both ends of it.

The one that measures connects to the other's agent, as a stand-in would. Round trips and clocks
are measured on that connection, bandwidth over one to a port that was free, as nodes use them.
"""

import secrets
import socket
from collections.abc import Sequence
from statistics import median
from time import monotonic, time
from typing import TypeVar

from megainfer.errors import MegaInferError, NodeDied, ProtocolError
from megainfer.hosts.listening import Address, listen
from megainfer.hosts.wire import Wire, await_messages
from megainfer.messages.hosts import (
    Echo,
    Echoed,
    FromAttendant,
    LinkProbed,
    OpenPort,
    PortOpened,
    PortRead,
    ProbeLink,
    ToAttendant,
    from_attendant_decoder,
)
from megainfer.messages.message import Message
from megainfer.tls.peers import PeerTls

ROUNDS = 20
SEND_SECONDS = 0.5
ANSWER_SECONDS = 5.0
PATIENCE_SECONDS = 15.0
"""Of silence; pulses rest while bytes are sent."""
_TICKET_BYTES = 32
_PIECE = bytes(1 << 20)
Answer = TypeVar("Answer", bound=Message)


def serve_probing(
    wire: Wire[ToAttendant],
    said: Sequence[ToAttendant],
    token: bytes,
    address: str,
    tls: PeerTls | None = None,
) -> None:
    """Answer until the other goes. said: what it began with. address: of this host. tls: of its
    connections to other agents, of which what is measured is none."""
    wire.keep(PATIENCE_SECONDS)
    while True:
        for message in said:
            match message:
                case Echo():
                    wire.send(Echoed(time()))
                case OpenPort():
                    _take_bytes(wire, address)
                case ProbeLink():
                    wire.send(probed(message, token, tls))
                case _:
                    raise ProtocolError(f"{wire.name} said {type(message).__name__}")
        try:
            said = await_messages(wire, PATIENCE_SECONDS)
        except NodeDied:
            return


def probed(link: ProbeLink, token: bytes, tls: PeerTls | None = None) -> LinkProbed:
    """The way from here to there."""
    try:
        connection = socket.create_connection((link.address, link.port), timeout=ANSWER_SECONDS)
    except OSError as error:
        where = Address(link.address, link.port)
        return LinkProbed(error=f"its agent can't be reached at {where}: {error}")
    name = f"host {link.host}"
    wire = Wire(connection, token, from_attendant_decoder, name, True, PATIENCE_SECONDS, tls=tls)
    try:
        return _measured(wire, link.address)
    except MegaInferError as error:
        return LinkProbed(error=str(error))
    finally:
        wire.close()


def _measured(wire: Wire[FromAttendant], address: str) -> LinkProbed:
    _asked(wire, Echo(), Echoed)  # both have proved themselves by then
    trips, ahead = zip(*(_round_trip(wire) for _ in range(ROUNDS)), strict=True)
    trip = median(trips)
    opened = _asked(wire, OpenPort(), PortOpened)
    try:
        _send_bytes((address, opened.port), opened.ticket)
    except OSError as error:
        return LinkProbed(
            trip,
            0.0,
            median(ahead),
            f"nothing reaches port {opened.port}, which was free there ({error}): nodes take free "
            "ports, so a firewall has to let them through",
        )
    read = _expected(wire, PortRead)
    rate = read.received / max(read.seconds, 1e-9)
    return LinkProbed(trip, rate, median(ahead))


def _round_trip(wire: Wire[FromAttendant]) -> tuple[float, float]:
    """Seconds, and how far the other's clock is before ours."""
    began, wall = monotonic(), time()
    there = _asked(wire, Echo(), Echoed).now
    seconds = monotonic() - began
    return seconds, there - (wall + seconds / 2)


def _asked(wire: Wire[FromAttendant], question: Message, kind: type[Answer]) -> Answer:
    wire.send(question)
    return _expected(wire, kind)


def _expected(wire: Wire[FromAttendant], kind: type[Answer]) -> Answer:
    (said, *_) = await_messages(wire, ANSWER_SECONDS)
    if not isinstance(said, kind):
        raise ProtocolError(f"{wire.name} said {type(said).__name__}, not {kind.__name__}")
    return said


def _send_bytes(to: tuple[str, int], ticket: bytes) -> None:
    """As many as go in a moment. Raises OSError."""
    with socket.create_connection(to, timeout=ANSWER_SECONDS) as out:
        out.sendall(ticket)
        end = monotonic() + SEND_SECONDS
        while monotonic() < end:
            out.sendall(_PIECE)


def _take_bytes(wire: Wire[ToAttendant], address: str) -> None:
    """Whoever comes without the ticket is sent away; nothing is kept of what comes."""
    ticket = secrets.token_bytes(_TICKET_BYTES)
    with listen(Address(address, 0), "a port for measuring") as listening:
        wire.send(PortOpened(listening.getsockname()[1], ticket))
        listening.settimeout(ANSWER_SECONDS)
        deadline = monotonic() + ANSWER_SECONDS
        while monotonic() < deadline:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # nobody came: who asked knows why
            with connection:
                connection.settimeout(ANSWER_SECONDS)
                if (read := _read(connection, ticket)) is not None:
                    wire.send(read)
                    return


def _read(connection: socket.socket, ticket: bytes) -> PortRead | None:
    try:
        if connection.recv(_TICKET_BYTES, socket.MSG_WAITALL) != ticket:
            return None
        began, received, buffer = monotonic(), 0, bytearray(1 << 20)
        while (count := connection.recv_into(buffer)) and monotonic() - began < ANSWER_SECONDS:
            received += count
    except OSError:
        return None
    return PortRead(received, monotonic() - began)
