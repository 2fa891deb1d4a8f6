"""The end of a rank that is on another host than rank 0."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from megainfer.errors import NodeDied, ProtocolError
from megainfer.m2n.dist.channel import Work
from megainfer.m2n.dist.groups import GROUP_SECONDS
from megainfer.m2n.dist.listening import Address
from megainfer.ranks.dist.frames import ORDER_BYTES, DoneFrame, OrderFrame
from megainfer.ranks.dist.line import HasDue, not_due
from megainfer.ranks.dist.meeting import Ends, Meeting, Terms
from megainfer.ranks.dist.payloads import Payload, Payloads
from megainfer.ranks.layout import Field
from megainfer.ranks.memory import Views
from megainfer.ranks.shared import Shared


class FollowingElsewhere:
    """`road.FollowingRoad`. shared: of this process alone. leader: where rank 0 listens. page: see
    `line.not_due`."""

    def __init__(
        self,
        shared: Shared[Any],
        rank: int,
        terms: Terms,
        leader: Address,
        page: HasDue | None = None,
    ) -> None:
        self._page = page
        self._views = Views(shared)
        self._rank = rank
        self._fields: Sequence[Field] = shared.layout.given
        self._meeting = Meeting(terms, shared.layout)
        self._leader = leader
        self._payloads = Payloads(shared)
        self._ends: Ends | None = None  # until it has loaded
        self._number = 0  # of the latest order
        self._came: list[Payload] = []  # with it
        self._made: tuple[Payload, int] | None = None  # and its rows
        self._sent: Work | None = None  # gloo forgets what nobody holds

    def wait(self, timeout: float) -> Sequence[int] | None:
        """See `FollowingRoad`."""
        ends = self._met
        said = ends.line.hear(ORDER_BYTES, timeout)
        if said is None:
            return None
        frame = OrderFrame.unpack(said)
        self._check(frame)
        self._number, self._made, self._sent = frame.number, None, None
        given = [each for each in self._fields if frame.fields >> each.number & 1 and frame.rows]
        self._came = [self._payloads.of(each, frame.rows) for each in given]
        try:
            for payload, tag in self._came:
                ends.back.receive(payload, GROUP_SECONDS, tag)
        except NodeDied as error:
            ends.line.lose(str(error))
        return frame.order

    def given(self, field: Field, rows: int) -> Tensor:
        """See `FollowingRoad`."""
        return self._views.of(field, rows)

    def result(self, field: Field, rows: int) -> Tensor:
        """See `FollowingRoad`."""
        if rows:
            self._made = self._payloads.of(field, rows), rows
        return self._views.of(field, rows)

    def done(self) -> None:
        """See `FollowingRoad`."""
        if self._ends is None:
            self._ends = self._meeting.greet(self._rank, self._leader)
            self._meeting.close()
            return
        with not_due(self._page):
            self._tell_done(self._ends)

    def _tell_done(self, ends: Ends) -> None:
        line, out, back = ends
        rows = 0
        try:
            for payload in self._came:  # mostly the next order comes with as many rows
                back.expect(*payload)
            if self._made is not None:
                made, rows = self._made
                self._sent = out.send(*made)
        except NodeDied as error:
            line.lose(str(error))
        line.say(DoneFrame(self._number, rows).pack())

    @property
    def _met(self) -> Ends:
        assert self._ends is not None, "orders come once it has loaded"
        return self._ends

    def _check(self, frame: OrderFrame) -> None:
        """Raises ProtocolError before anything is posted for what can't be."""
        if frame.number != self._number + 1:
            raise ProtocolError(f"rank 0 gave order {frame.number} after {self._number}")
        if frame.fields >> len(self._fields):
            raise ProtocolError(f"rank 0 gave order {frame.number} with fields {frame.fields:b}")
        for field in self._fields:
            if frame.fields >> field.number & 1 and frame.rows > field.rows:
                raise ProtocolError(
                    f"rank 0 gave order {frame.number} with {frame.rows} rows of a field that has "
                    f"{field.rows}"
                )
