"""The one interface of M2N: what an attention node and an expert node can do with their ports.

A message is written whole into a slot that its receiver registered once; then a doorbell is rung.
Nothing here is collective: no call waits for a matching call of a peer. What is handed over are
named tuples, which are made several times a layer and cost a third of a frozen dataclass.

There is one dispatch slot and one reply slot for each (attention node, expert node, micro-batch).

A port belongs to a device, whose work is done in the order in which it was given to a stream, later
than the call that gave it. So a call acts at a place in the work of the port's stream, that is, the
calling thread's current stream of `Port.device`, and no call waits for the device:

    dispatch, reply   read what tensors hold once the work before the call is done, and publish the
                      message then. Work that is given later may write over those tensors.
    combine           is enqueued: `out` holds the sums for the work that is given later.
    poll, receive     tell what has been published. Work that is given later may read it.
    wait              wakes for what is published, or is about to be.

Whoever gives the work of one micro-batch to several streams orders them by events. On the host all
of this is so by itself, because work is done when its call returns.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from megainfer.device import Device


class Part(NamedTuple):
    """The rows of one micro-batch's layer that go to one expert node (R of them, maybe none).

    rows: int64 [R], indices into the step's tokens, ascending. local_ids: int32 [R, K], expert ids
    local to the node, -1 where that choice of the token lives elsewhere. weights: float32 [R, K],
    0 where local_ids is -1.

    count: int32 [1] on the port's device, how many of the rows count, where no host knows it; R is
    then the most that there may be, and what follows is padding: row 0, local ids -1, weights 0. A
    road may carry padding like other rows, since a sum over no expert is zero. None: all count.

    places: int32 [T] on the port's device, which of the rows each of the step's tokens is, or -1,
    for kernels that go through tokens. A plan that was made by kernels has it unless all tokens are
    rows.
    """

    rows: Tensor
    local_ids: Tensor
    weights: Tensor
    count: Tensor | None = None  # type: ignore[assignment]  # a tuple's count() is no use here
    places: Tensor | None = None

    def blank(self) -> "Part":
        """Of the same kind, without a row."""
        return Part(self.rows[:0], self.local_ids[:0], self.weights[:0])


class Handle(NamedTuple):
    """A dispatch in flight: what `combine` needs to bring it home."""

    micro_batch: int
    layer: int
    parts: tuple[Part, ...]  # one an expert node, in node order
    # Expert nodes that were sent rows and so will reply; also one whose rows are all padding, so
    # that the host knows whom it awaits without asking the device.
    awaiting: frozenset[int]


class Arrival(NamedTuple):
    """A reply that has come in. `error` is the expert node's message when it could not compute."""

    micro_batch: int
    layer: int
    expert_node: int
    error: str | None = None


class Dispatch(NamedTuple):
    """A dispatch message as the expert node sees it; the tensors are views into the slot.

    hidden: [R, D] in the instance's dtype. local_ids: int32 [R, K]. weights: float32 [R, K].
    They stay valid until `reply` (or `reply_error`) is called for it.

    count: int32 [1] on the port's device, as in `Part`. Rows behind it are padding with any hidden
    states, and what is replied to them is read by nobody. None: all R count.
    """

    source: int  # attention node
    micro_batch: int
    layer: int
    sequence: int
    hidden: Tensor
    local_ids: Tensor
    weights: Tensor
    count: Tensor | None = None  # type: ignore[assignment]  # a tuple's count() is no use here

    @property
    def num_rows(self) -> int:
        """R: how many there are, or may be."""
        return self.hidden.shape[0]


class Rest(NamedTuple):
    """The attention node has nothing more for this micro-batch until it speaks again."""

    source: int
    micro_batch: int


class Port(Protocol):
    """What both sides share."""

    @property
    def device(self) -> Device:
        """Where the tensors of its messages are, and whose streams order its calls."""

    def lost_peers(self) -> frozenset[int]:
        """Indices of peers whose process is gone (noticed through the control connection), members
        of the epoch or not."""

    def wait(self, timeout: float, fds: Sequence[int] = ()) -> None:
        """Sleep until a message may have arrived, a peer was lost, one of `fds` is readable, or
        `timeout` seconds have passed. May return early, and again and again while a message is
        announced that a device has yet to publish; never late by more than scheduling."""

    def set_epoch(self, epoch: int, members: Collection[int] | None = None) -> None:
        """Enter a newer membership: what is in flight is abandoned and its slots are free again,
        older messages are dropped from now on, and those that came early are delivered. What a
        device has yet to publish of an older epoch is dropped when it comes.

        members: the peers that take part in it, all unless given; the others are sent nothing. An
        epoch that it is in already changes nothing. Where peers come and go, whoever was met since
        the last epoch is there from now on, in place of its predecessor.

        Raises ProtocolError when `epoch` is older than the port's, or a member was never met.
        """

    def counters(self) -> dict[str, int]:
        """Messages, rows and bytes sent and received, and messages dropped, since the start."""

    def close(self) -> None:
        """Release slots and connections; peers see this node as lost."""


class AttentionPort(Port, Protocol):
    """The attention node's end."""

    def dispatch(
        self, micro_batch: int, layer: int, hidden: Tensor, parts: Sequence[Part]
    ) -> Handle:
        """Write each part's rows of `hidden` [T, D] into its expert node's slot and ring.

        parts: one an expert node, up to the last member at least; without rows for others. Every
        member is sent one message, a header only where its part has no rows. How many of a part's
        rows count may be known on the device only (`Part.count`). The slots of this micro-batch
        must be free: the last dispatch's replies have all arrived (combined or not; what has not
        been combined by now is lost).

        Raises ProtocolError where that isn't so, when a part has more rows than a slot's capacity,
        or when a tensor has another shape or dtype than agreed.
        """

    def poll(self) -> list[Arrival]:
        """Replies that arrived since the last call; never blocks, nor waits for the device.

        Raises ProtocolError when a reply contradicts the agreed layout.
        """

    def combine(self, handle: Handle, out: Tensor) -> None:
        """Add the replies into `out` [T, D], in the order of expert nodes, so that the result does
        not depend on the order of arrival; once a handle.

        Raises ProtocolError unless this is the micro-batch's last dispatch and all of
        `handle.awaiting` have replied without error.
        """

    def rest(self, micro_batch: int) -> None:
        """Tell every expert node of the epoch that this micro-batch has nothing more for now.

        The micro-batch's slots must be free, as for `dispatch`.
        """


class JoiningPort(AttentionPort, Protocol):
    """An attention node's end where expert nodes come and go."""

    def meet(
        self,
        expert: int,
        incarnation: int,
        timeout: float,
        on_met: Callable[[], None],
        address: tuple[str, int] | None = None,
    ) -> None:
        """Meet this incarnation of an expert node, beside whatever else goes on. address: its
        `ExpertPort.address`; None for one of this host.

        `on_met` is called by another thread once a message of the next epoch would reach it; never
        where that isn't so within `timeout` seconds.
        """


class ExpertPort(Port, Protocol):
    """The expert node's end."""

    @property
    def address(self) -> tuple[str, int] | None:
        """The IP address and the port at which attention nodes of other hosts meet it; None where
        its road doesn't lead there."""

    def receive(self) -> list[Dispatch | Rest]:
        """Messages that arrived since the last call, zero-row ones included; never blocks, nor
        waits for the device.

        Raises ProtocolError when a message contradicts the agreed layout.
        """

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """The reply slot of this dispatch, [R, D]: kernels write the result right into it.

        A dispatch of an epoch that has ended gets memory that nobody reads.
        """

    def reply(self, dispatch: Dispatch) -> None:
        """Publish what the work before has written into `reply_buffer`, and ring.

        Dropped and counted when the dispatch's epoch has ended. Raises ProtocolError for a
        dispatch without rows: it gets no reply.
        """

    def reply_error(self, dispatch: Dispatch, message: str) -> None:
        """Say instead that it could not be computed; cut to the slot's size."""
