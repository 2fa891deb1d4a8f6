"""Rank 0's end, where some of the others are on other hosts."""

import socket
from collections.abc import Sequence
from threading import Condition
from time import monotonic
from typing import Any

from torch import Tensor

from megainfer.errors import NodeDied, ProtocolError
from megainfer.m2n.dist.channel import Work
from megainfer.m2n.dist.groups import GROUP_SECONDS
from megainfer.m2n.dist.listening import TcpListener
from megainfer.m2n.host.meeting import Doorman
from megainfer.ranks.dist.frames import DONE_BYTES, DoneFrame, OrderFrame
from megainfer.ranks.dist.line import HasDue, not_due
from megainfer.ranks.dist.meeting import Ends, Meeting, Terms
from megainfer.ranks.dist.payloads import Payload, Payloads
from megainfer.ranks.layout import Field
from megainfer.ranks.memory import Views
from megainfer.ranks.orders import Orders
from megainfer.ranks.road import ANSWER_SECONDS, LOADING_SECONDS, MESSAGE, Given
from megainfer.ranks.shared import Shared


class RankElsewhere:
    """One of another host, as rank 0 has it. What goes with orders is sent from the memory that
    rank 0 shares with those of its own host, and what this one makes is received there."""

    def __init__(self, name: str, ends: Ends, payloads: Payloads) -> None:
        self._name = name
        self._ends = ends
        self._payloads = payloads
        self._number = 0
        self._rows = 0  # of what it makes
        self._awaited: Payload | None = None
        self._sent: list[Work] = []  # gloo forgets what nobody holds
        self._is_busy = False

    def begin(self, order: Sequence[int], given: Sequence[Given], made: Field | None) -> None:
        """As `LeadingRoad.begin`; what is given is in the memory."""
        rows = given[0].rows if given else 0
        self._number += 1
        self._is_busy = True
        self._rows = rows if made is not None else 0
        try:
            if made is not None and rows:
                self._awaited = self._payloads.of(made, rows)
                self._ends.back.expect(*self._awaited)
            if rows:
                travel = [self._payloads.of(each.field, rows) for each in given]
                self._sent = [self._ends.out.send(*payload) for payload in travel]
        except NodeDied as error:
            self._ends.line.lose(str(error))
        fields = sum(1 << each.field.number for each in given)
        self._ends.line.say(OrderFrame(self._number, fields, rows, tuple(order)).pack())

    def await_done(self, timeout: float) -> None:
        """Until what it makes is in the memory. Raises NodeDied."""
        if not self._is_busy:
            return
        said = self._ends.line.hear(DONE_BYTES, timeout)
        if said is None:
            raise NodeDied(f"{self._name} has not answered for {timeout:g} s")
        done, told = DoneFrame.unpack(said), DoneFrame(self._number, self._rows)
        if done != told:
            raise ProtocolError(f"{self._name} has done {done}, and was told {told}")
        if self._awaited is not None:
            payload, tag = self._awaited
            try:
                self._ends.back.receive(payload, GROUP_SECONDS, tag)
            except NodeDied as error:
                self._ends.line.lose(str(error))
        self._awaited, self._sent, self._is_busy = None, [], False

    def close(self) -> None:
        self._ends.close()


class LeadingHosts:
    """`road.LeadingRoad` to ranks of this host, over memory, and to those of others. elsewhere:
    these ranks, which come to `listener`. page: see `line.not_due`."""

    def __init__(
        self,
        shared: Shared[Any],
        terms: Terms,
        elsewhere: Sequence[int],
        listener: TcpListener,
        spin_seconds: float = 0.0,
        page: HasDue | None = None,
    ) -> None:
        self._page = page
        self._views = Views(shared)
        self._ranks = shared.layout.ranks
        here = [rank for rank in range(1, self._ranks) if rank not in elsewhere]
        self._orders = Orders(shared.memory, self._ranks, terms.node, spin_seconds, here)
        self._meeting = Meeting(terms, shared.layout)
        self._node = terms.node
        self._payloads = Payloads(shared)
        self._missing = frozenset(elsewhere)
        self._others: dict[int, RankElsewhere] = {}
        self._arrived = Condition()
        self._doorman = Doorman(listener, terms.node, self._let_in)
        self._made: Sequence[Field] = ()
        self._rows = 0

    def await_loaded(self, timeout: float = LOADING_SECONDS) -> None:
        """See `LeadingRoad`; ranks of other hosts come when they have. Those that don't within
        `timeout` seconds are named; who else came, and was sent away, is in the log."""
        deadline = monotonic() + timeout
        with self._arrived:
            if not self._arrived.wait_for(lambda: not self._missing, timeout):
                missing = ", ".join(map(str, sorted(self._missing)))
                raise NodeDied(f"rank {missing} of {self._node} did not connect in time")
        self._doorman.close()
        self._meeting.close()
        self._orders.await_all(max(deadline - monotonic(), 0.0))

    def begin(
        self, order: Sequence[int], given: Sequence[Given] = (), made: Sequence[Field] = ()
    ) -> None:
        """See `LeadingRoad`."""
        self._await_all()
        for each in given:
            self._views.write(each)
        self._made, self._rows = made, given[0].rows if given else 0
        with not_due(self._page):
            for rank, other in self._others.items():
                other.begin(order, given, made[rank - 1] if made else None)
        self._orders.say(order)

    def results(self) -> Sequence[Tensor]:
        """See `LeadingRoad`."""
        self._await_all()
        return [self._views.of(field, self._rows) for field in self._made]

    def message(self) -> None:
        """See `LeadingRoad`."""
        self.begin((MESSAGE,))

    def check(self) -> None:
        """See `LeadingRoad`: who takes results waits for them."""

    def close(self) -> None:
        """See `LeadingRoad`."""
        self._doorman.close()
        for other in self._others.values():
            other.close()

    def _await_all(self, timeout: float = ANSWER_SECONDS) -> None:
        self._orders.await_all(timeout)
        with not_due(self._page):
            for other in self._others.values():
                other.await_done(timeout)

    def _let_in(self, connection: socket.socket, deadline: float) -> None:
        """One of those who come, in a thread of its own. Raises NodeDied, ProtocolError."""
        rank, ends = self._meeting.welcome(connection, self._missing, deadline)
        name = f"rank {rank} of {self._node}"
        with self._arrived:
            if rank not in self._missing:
                ends.close()
                raise ProtocolError(f"{name} came twice at a time")
            self._missing -= {rank}
            self._others[rank] = RankElsewhere(name, ends, self._payloads)
            self._arrived.notify_all()
