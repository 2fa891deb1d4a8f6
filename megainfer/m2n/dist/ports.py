"""M2N over torch.distributed: its ports, and how their nodes meet."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Condition

from megainfer.device import Device
from megainfer.errors import NodeDied
from megainfer.m2n.dist.handshake import Pair, admitted, greet, welcome
from megainfer.m2n.dist.listening import Address, Sign, TcpListener, dial_tcp, read_sign
from megainfer.m2n.dist.mail import DistAttentionMail, DistExpertMail
from megainfer.m2n.dist.site import Site
from megainfer.m2n.host.handshake import Side
from megainfer.m2n.host.meeting import Doorman, Visitor
from megainfer.m2n.host.wire import HostWire
from megainfer.m2n.packing import TORCH_PACKING, Packing
from megainfer.m2n.roads import Road, Seat
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.host_packing import packing_of_host

_NO_SPIN = 0.0
"""Links have threads of this very process, which a node that spins in Python would keep waiting."""


class DistAttentionPort(SlotAttentionPort):
    """An attention node's port to expert nodes that a network leads to; it has met none at first.

    Raises ConfigError as `site.Site`.
    """

    def __init__(
        self, road: Road, seat: Seat, device: Device | None = None, packing: Packing | None = None
    ) -> None:
        seat = _apart(seat)
        self._road = road
        self._elsewhere: dict[tuple[int, int], Address] = {}  # expert nodes of other hosts
        self._site = site = Site(road, seat, Side.ATTENTION, device)
        if site.device.is_host:
            packing = packing_of_host(seat.geometry)
        mail = DistAttentionMail(
            *(seat, site.inbox, site.strangers, site.slots_in),
            *(packing or TORCH_PACKING, site.together),
        )
        self.host = HostWire(site.bell, mail.sleeper(site.bell, _NO_SPIN))
        self._visitor = Visitor(seat.index, self.visit)
        super().__init__(seat, mail, self.host, met=())

    def meet(
        self,
        expert: int,
        incarnation: int,
        timeout: float,
        on_met: Callable[[], None],
        address: tuple[str, int] | None = None,
    ) -> None:
        """See `mailbox.JoiningPort.meet`."""
        if address is not None:
            self._elsewhere[expert, incarnation] = Address(*address)
        self._visitor.begin(expert, incarnation, timeout, on_met)

    def visit(self, expert: tuple[int, int], deadline: float) -> None:
        """Meet an expert node (index, incarnation), once it is there: of this host, unless `meet`
        was told where else it is.

        Raises NodeDied when it does not answer in time, ProtocolError when it is of another
        version, geometry, user or key.
        """
        elsewhere = self._elsewhere.pop(expert, None)
        address = elsewhere or read_sign(self._road.token, expert, deadline)
        self.visit_at(address, expert, deadline)

    def visit_at(self, address: Address, expert: tuple[int, int], deadline: float) -> None:
        """The same, of whichever host."""
        connection = self._site.terms.secured(
            dial_tcp(address, f"expert node {expert[0]}", deadline), calls=True
        )
        with _closed_unless_paired(connection):
            pair = greet(connection, self._site.terms, expert, deadline)
        link = self._site.link(pair)
        self.host.met(link)
        self._site.begin(link)

    def close(self) -> None:
        _close(self._site, super().close)


class DistExpertPort(SlotExpertPort):
    """An expert node's port to attention nodes that a network leads here.

    It listens at `address`, for as long as it lives; whoever is on this host finds it by a sign,
    unless there is to be none. Raises ConfigError as `site.Site`, and when it can't listen or
    somebody else has its place.
    """

    def __init__(
        self, road: Road, seat: Seat, device: Device | None = None, sign: bool = True
    ) -> None:
        seat = _apart(seat)
        self._known: set[int] = set()  # who has ever been here
        self._arrived = Condition()
        with contextlib.ExitStack() as undo:
            self._site = site = Site(road, seat, Side.EXPERT, device)
            undo.callback(site.end)
            undo.callback(site.bell.close)
            mail = DistExpertMail(seat, site.inbox, site.strangers, site.slots_in)
            self.host = HostWire(site.bell, mail.sleeper(site.bell, _NO_SPIN))
            super().__init__(seat, mail, self.host, met=())
            listener = TcpListener.create(road.host)
            self.address = listener.address
            self._doorman = Doorman(listener, f"expert node {seat.index}", self._let_in)
            undo.callback(self._doorman.close)
            expert = (seat.index, seat.incarnation)
            self._sign = Sign(road.token, expert, listener.address) if sign else None
            undo.pop_all()

    def await_all(self, deadline: float) -> None:
        """Until every attention node has been here; all are members of the seat's epoch then.

        Raises NodeDied when one hasn't by `deadline`; why others were sent away is in the log.
        """
        everybody = set(range(self._geometry.num_attention))
        with self._arrived:
            left = deadline - time.monotonic()
            if not self._arrived.wait_for(lambda: everybody <= self._known, left):
                missing = sorted(everybody - self._known)
                raise NodeDied(f"attention nodes {missing} did not connect in time")
        self.begin()

    def close(self) -> None:
        if self._sign is not None:
            self._sign.close()
        self._doorman.close()
        _close(self._site, super().close)

    def _let_in(self, connection: socket.socket, deadline: float) -> None:
        connection = self._site.terms.secured(connection, calls=False)
        with _closed_unless_paired(connection):
            pair: Pair = welcome(connection, self._site.terms, deadline)
        link = self._site.link(pair)
        self.host.met(link)
        try:
            admitted(pair, deadline)
        finally:
            self._site.begin(link)
        with self._arrived:
            self._known.add(pair.index)
            self._arrived.notify_all()


def join_attention(
    road: Road, seat: Seat, device: Device | None = None, packing: Packing | None = None
) -> DistAttentionPort:
    """See `roads.join_attention`."""
    return DistAttentionPort(road, seat, device, packing)


def join_expert(road: Road, seat: Seat, device: Device | None = None) -> DistExpertPort:
    """See `roads.join_expert`."""
    return DistExpertPort(road, seat, device)


def open_attention_port(
    road: Road,
    seat: Seat,
    timeout: float,
    device: Device | None = None,
    packing: Packing | None = None,
) -> DistAttentionPort:
    """See `roads.open_attention_port`."""
    deadline = time.monotonic() + timeout
    port = DistAttentionPort(road, seat, device, packing)
    with contextlib.ExitStack() as undo:
        undo.callback(port.close)
        for expert in range(seat.geometry.num_expert):
            port.visit((expert, 0), deadline)
        port.begin()
        undo.pop_all()
    return port


def open_expert_port(
    road: Road, seat: Seat, timeout: float, device: Device | None = None
) -> DistExpertPort:
    """See `roads.open_expert_port`."""
    deadline = time.monotonic() + timeout
    port = DistExpertPort(road, seat, device)
    with contextlib.ExitStack() as undo:
        undo.callback(port.close)
        port.await_all(deadline)
        undo.pop_all()
    return port


def _apart(seat: Seat) -> Seat:
    """The seat with payloads where this road has them: in no slot."""
    return replace(seat, geometry=seat.geometry.on_devices)


@contextlib.contextmanager
def _closed_unless_paired(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _close(site: Site, close: Callable[[], None]) -> None:
    """A port, and what it has of the road."""
    site.shut()
    close()
    site.end()
