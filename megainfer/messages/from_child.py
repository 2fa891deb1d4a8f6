"""What children say to the supervisor."""

from typing import Any

from msgspec import field

from megainfer.instruments.stage_clock import Span
from megainfer.messages.message import Message, Role
from megainfer.models.quantization import QuantizationSpec


class LoadProgress(Message, frozen=True):
    """Loading: bytes of weights that are in place, of all that this process loads; or pieces of
    another stage of its start."""

    stage: str
    done: int
    total: int


class Loaded(Message, frozen=True):
    """Weights are in place; stage times (rows, seconds) were profiled for the choice of m."""

    stage_seconds: list[tuple[int, float]] = field(default_factory=list)


class Opened(Message, frozen=True):
    """The port is open: peers can be met.

    address: from an expert node, the IP address and the port at which attention nodes of other
    hosts find it, where its road leads there. gives_at: those at which it gives other expert nodes
    experts, where it does.
    """

    address: tuple[str, int] | None = None
    gives_at: tuple[str, int] | None = None


class Connected(Message, frozen=True):
    """Transfers were measured; attention nodes tell them, for the choice of m.

    transfer_seconds: (rows, seconds one way). waking_seconds: by how much it takes longer to a node
    that has gone to sleep.
    """

    transfer_seconds: list[tuple[int, float]] = field(default_factory=list)
    waking_seconds: float = 0.0


class Met(Message, frozen=True):
    """From an attention node: what one dispatches reaches the other from now on."""

    expert: int
    incarnation: int


class LinkLost(Message, frozen=True):
    """From an attention node: the connection to this incarnation of an expert node has ended."""

    expert: int
    incarnation: int


class Prepared(Message, frozen=True):
    """It could enter what this Prepare has. error: why it can't."""

    ticket: int
    error: str | None = None


class Ready(Message, frozen=True):
    """Able to serve."""


class Entered(Message, frozen=True):
    """This node takes part in the membership of this epoch from now on."""

    epoch: int


class Drained(Message, frozen=True):
    """From the API server: no request is left."""


class Stats(Message, frozen=True):
    """Counters since the start, by the node's name; their meaning stands where they are counted.

    ticket: of the GetStats that this answers; None: told unasked, as a node does once a second for
    as long as its loop goes round.
    """

    ticket: int | None
    counters: dict[str, dict[str, Any]]


class Spans(Message, frozen=True):
    """Some of a node's spans, oldest first: few enough for one message of the control link.

    last: this process has no more to send for the ticket.
    """

    ticket: int
    node: str
    spans: list[Span]
    last: bool


class Resize(Message, frozen=True):
    """From a front end: so many attention and expert nodes are wanted; None: as there are."""

    ticket: int
    attention: int | None = None
    experts: int | None = None


class Release(Message, frozen=True):
    """From a front end: this node isn't wanted any more; what it has goes to the others."""

    ticket: int
    role: Role
    node: int


class Renew(Message, frozen=True):
    """From a front end: start this node again, or each node, one after the other."""

    ticket: int
    role: Role | None = None
    node: int | None = None


class UpdateWeights(Message, frozen=True):
    """From a front end: have all nodes compute with these weights.

    version: their name, None: their number. files: paths of safetensors files that hold all of
    them and stay as they are until the answer. quantization: as in `WeightFiles`.
    """

    ticket: int
    version: str | None
    files: list[str]
    quantization: QuantizationSpec | None = None


class Fatal(Message, frozen=True):
    """The child is about to exit because of this.

    befell: it was done to the node (it was killed, its host is lost), so that another start may
    well do better. Only stand-ins for nodes of other hosts say so.
    """

    message: str
    befell: bool = False
