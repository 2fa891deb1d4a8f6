"""The two ends between processes of one host, wherever payloads are: who is met, and how."""

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from megainfer.errors import NodeDied, ProtocolError
from megainfer.m2n.host.connection import Admit, OwnEnd
from megainfer.m2n.host.meeting import Doorman, Listener, Visitor, expert_address, let_in, visit
from megainfer.m2n.host.wire import HostWire
from megainfer.m2n.roads import Road, Seat
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.mail import AttentionMail, ExpertMail
from megainfer.m2n.slotted.sleeper import Sleeper


class HostAttentionPort(SlotAttentionPort):
    """An attention node's port to expert nodes in other processes; it has met none at first.

    own: what its peers get of it, its own to close from now on. mail: over that.
    """

    def __init__(
        self, token: str, seat: Seat, own: OwnEnd, mail: AttentionMail, sleeper: Sleeper
    ) -> None:
        self._seat, self._own = seat, own
        self.host = HostWire(own.bell, sleeper)
        self._visitor = Visitor(seat.index, partial(_visit, token, seat, own, self.host.met))
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
        self._visitor.begin(expert, incarnation, timeout, on_met)

    def connect(self, addresses: Sequence[str], timeout: float) -> None:
        """Meet the expert nodes at `addresses`, in node order; they may begin to listen later.

        timeout: seconds for all of it. Raises NodeDied when a node does not answer in time,
        ProtocolError when it is of another version, geometry or user; the port is closed then.
        """
        deadline = time.monotonic() + timeout
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            if len(addresses) != self._seat.geometry.num_expert:
                raise ProtocolError(
                    f"{len(addresses)} addresses of {self._seat.geometry.num_expert} expert nodes"
                )
            for node, address in enumerate(addresses):
                self.host.met(visit(address, self._seat, self._own, (node, 0), deadline))
            undo.pop_all()
        self.begin()

    def close(self) -> None:
        super().close()
        self._own.withdraw()


class HostExpertPort(SlotExpertPort):
    """An expert node's port to attention nodes in other processes, as `HostAttentionPort`."""

    def __init__(self, seat: Seat, own: OwnEnd, mail: ExpertMail, sleeper: Sleeper) -> None:
        self._seat, self._own = seat, own
        self.host = HostWire(own.bell, sleeper)
        self._doorman: Doorman | None = None
        super().__init__(seat, mail, self.host, met=())

    def listen(self, listener: Listener) -> None:
        """Let attention nodes in from now on; the listener is this port's to close."""
        let_one_in = partial(_let_in, self._seat, self._own, self.host.met)
        self._doorman = Doorman(listener, f"expert node {self._seat.index}", let_one_in)

    def accept(self, listener: Listener, timeout: float) -> None:
        """Meet all attention nodes; argument and errors as in `HostAttentionPort.connect`."""
        deadline = time.monotonic() + timeout
        missing = set(range(self._seat.geometry.num_attention))
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            while missing:
                connection = _answer(listener, sorted(missing), deadline)
                peer = let_in(connection, self._seat, self._own, self.host.met, deadline)
                missing.discard(peer.index)
            undo.pop_all()
        self.begin()

    def close(self) -> None:
        if self._doorman is not None:
            self._doorman.close()
        super().close()
        self._own.withdraw()


# What other threads do is no port's, whose memory goes with its last view.


def _visit(
    token: str, seat: Seat, own: OwnEnd, met: Admit, expert: tuple[int, int], deadline: float
) -> None:
    met(visit(expert_address(token, *expert), seat, own, expert, deadline))


def _let_in(
    seat: Seat, own: OwnEnd, met: Admit, connection: socket.socket, deadline: float
) -> None:
    let_in(connection, seat, own, met, deadline)


def addresses_of(road: Road, seat: Seat) -> list[str]:
    """Where the instance's expert nodes listen when they are first started."""
    return [expert_address(road.token, node) for node in range(seat.geometry.num_expert)]


def listen_at_its_place(port: HostExpertPort, road: Road, seat: Seat) -> None:
    """Let attention nodes in from now on, where they look for this node. The port is closed where
    that fails. Raises ConfigError when somebody else is there."""
    with contextlib.ExitStack() as undo:
        undo.callback(port.close)
        port.listen(Listener.create(expert_address(road.token, seat.index, seat.incarnation)))
        undo.pop_all()


def accept_at_its_place(port: HostExpertPort, road: Road, seat: Seat, timeout: float) -> None:
    """Meet all attention nodes where they look for this node, as `HostExpertPort.accept`."""
    with contextlib.ExitStack() as undo:
        undo.callback(port.close)
        listener = Listener.create(expert_address(road.token, seat.index))
        undo.pop_all()
    with contextlib.closing(listener):
        port.accept(listener, timeout)


def _answer(listener: Listener, missing: list[int], deadline: float) -> socket.socket:
    try:
        return listener.accept(deadline)
    except TimeoutError:
        raise NodeDied(f"attention nodes {missing} did not connect in time") from None
