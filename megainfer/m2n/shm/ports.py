"""M2N between processes of one host: slots in shared memory, bells as eventfds."""

import contextlib
import socket
import time
from collections.abc import Callable, Sequence

from megainfer.errors import NodeDied, ProtocolError
from megainfer.m2n.roads import DEFAULT_OPTIONS, PortOptions, Road, Seat
from megainfer.m2n.shm.connection import OwnEnd
from megainfer.m2n.shm.meeting import Doorman, ShmListener, Visitor, expert_address, let_in, visit
from megainfer.m2n.shm.wire import ShmWire
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.mail import Memory
from megainfer.m2n.slotted.opening import choose_mover


class ShmAttentionPort(SlotAttentionPort):
    """An attention node's port to expert nodes in other processes; it has met none at first."""

    def __init__(self, token: str, seat: Seat, options: PortOptions = DEFAULT_OPTIONS) -> None:
        self._own = own = OwnEnd.create(seat.geometry.attention_region_bytes)
        memory = Memory(own.slots, [None] * seat.geometry.num_expert, rings=True)
        mail = choose_mover(options.mover).attention(seat, memory)
        self._shm = wire = ShmWire(own.bell, mail.sleeper(own.bell, options.spin_seconds))
        self._visitor = Visitor(token, seat, own, wire.met)
        super().__init__(seat, mail, wire, met=())

    def meet(
        self, expert: int, incarnation: int, timeout: float, on_met: Callable[[], None]
    ) -> None:
        """See `mailbox.JoiningPort.meet`."""
        self._visitor.begin(expert, incarnation, timeout, on_met)

    @classmethod
    def connect(
        cls,
        addresses: Sequence[str],
        seat: Seat,
        timeout: float,
        options: PortOptions = DEFAULT_OPTIONS,
    ) -> "ShmAttentionPort":
        """Meet the expert nodes at `addresses`, in node order; they may begin to listen later.

        timeout: seconds for all of it. Raises NodeDied when a node does not answer in time,
        ProtocolError when it is of another version, geometry or user.
        """
        if len(addresses) != seat.geometry.num_expert:
            raise ProtocolError(
                f"{len(addresses)} addresses of {seat.geometry.num_expert} expert nodes"
            )
        deadline = time.monotonic() + timeout
        port = cls("", seat, options)
        with contextlib.ExitStack() as undo:
            undo.callback(port.close)
            for node, address in enumerate(addresses):
                port._shm.met(visit(address, seat, port._own, (node, 0), deadline))
            undo.pop_all()
        port.begin()
        return port

    def close(self) -> None:
        super().close()
        self._own.file.close()


class ShmExpertPort(SlotExpertPort):
    """An expert node's port to attention nodes in other processes; it has met none at first."""

    def __init__(self, seat: Seat, options: PortOptions = DEFAULT_OPTIONS) -> None:
        self._own = own = OwnEnd.create(seat.geometry.expert_region_bytes)
        memory = Memory(own.slots, [None] * seat.geometry.num_attention, rings=True)
        mail = choose_mover(options.mover).expert(seat, memory)
        self._shm = ShmWire(own.bell, mail.sleeper(own.bell, options.spin_seconds))
        self._seat = seat
        self._doorman: Doorman | None = None
        super().__init__(seat, mail, self._shm, met=())

    def listen(self, listener: ShmListener) -> None:
        """Let attention nodes in from now on; the listener is this port's to close."""
        self._doorman = Doorman(listener, self._seat, self._own, self._shm.met)

    @classmethod
    def accept(
        cls,
        listener: ShmListener,
        seat: Seat,
        timeout: float,
        options: PortOptions = DEFAULT_OPTIONS,
    ) -> "ShmExpertPort":
        """Meet all attention nodes; arguments and errors as in `ShmAttentionPort.connect`."""
        deadline = time.monotonic() + timeout
        port = cls(seat, options)
        missing = set(range(seat.geometry.num_attention))
        with contextlib.ExitStack() as undo:
            undo.callback(port.close)
            while missing:
                connection = _answer(listener, sorted(missing), deadline)
                peer = let_in(connection, seat, port._own, port._shm.met, deadline)
                missing.discard(peer.index)
            undo.pop_all()
        port.begin()
        return port

    def close(self) -> None:
        if self._doorman is not None:
            self._doorman.close()
        super().close()
        self._own.file.close()


def join_attention(road: Road, seat: Seat) -> ShmAttentionPort:
    """See `roads.join_attention`."""
    return ShmAttentionPort(road.token, seat, road.options)


def join_expert(road: Road, seat: Seat) -> ShmExpertPort:
    """See `roads.join_expert`."""
    port = ShmExpertPort(seat, road.options)
    address = expert_address(road.token, seat.index, seat.incarnation)
    with contextlib.ExitStack() as undo:
        undo.callback(port.close)
        port.listen(ShmListener.create(address))
        undo.pop_all()
    return port


def open_attention_port(road: Road, seat: Seat, timeout: float) -> ShmAttentionPort:
    """See `roads.open_attention_port`."""
    nodes = range(seat.geometry.num_expert)
    addresses = [expert_address(road.token, node) for node in nodes]
    return ShmAttentionPort.connect(addresses, seat, timeout, road.options)


def open_expert_port(road: Road, seat: Seat, timeout: float) -> ShmExpertPort:
    """See `roads.open_expert_port`."""
    with contextlib.closing(ShmListener.create(expert_address(road.token, seat.index))) as listener:
        return ShmExpertPort.accept(listener, seat, timeout, road.options)


def _answer(listener: ShmListener, missing: list[int], deadline: float) -> socket.socket:
    try:
        return listener.accept(deadline)
    except TimeoutError:
        raise NodeDied(f"attention nodes {missing} did not connect in time") from None
