"""What the supervisor says to its children."""

import msgspec
from msgspec import field

from megainfer.messages.message import Message, Role
from megainfer.messages.weights import OF_FOLDER, GivingNode, WeightFiles
from megainfer.topology import Membership, Placement


class Start(Message, frozen=True):
    """Open the port, with M2N slots for so many micro-batches, and say Opened."""

    micro_batches: int


class Measure(Message, frozen=True):
    """All have met: measure transfers between the nodes of this membership, and say Connected."""

    membership: Membership


class Serve(Message, frozen=True):
    """Be ready to serve, and say Ready; what is served first is told by the first Enter.

    micro_batches: m, at most what there are slots for. first: where an attention node chooses how
    many of them it uses, how many to begin with; else None, and it uses all.
    """

    micro_batches: int
    first: int | None = None


class Enter(Message, frozen=True):
    """Another membership: what is in flight between nodes is abandoned and computed again in it,
    and new requests go to its attention nodes."""

    membership: Membership


class Started(Message, frozen=True):
    """To the API server: everybody is ready. seconds: of each stage of the start, in order.

    profile: (rows, seconds) of each of the plan's terms, where the start measured them.
    """

    seconds: dict[str, float]
    profile: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


class NodeDown(Message, frozen=True):
    """To every front end: this incarnation of a node has died, or was given up and killed. From a
    front end: it has given this one up, which is to be started again.

    incarnation: counts the processes that this node has been, from 0.
    """

    role: Role
    node: int
    message: str
    incarnation: int = 0


class NodeGone(Message, frozen=True):
    """To every front end: this node is none of the instance's any more."""

    role: Role
    node: int


class FrontEndUp(Message, frozen=True):
    """To an attention node: connect to this front end. incarnation: as in NodeDown."""

    server: int
    incarnation: int


class FrontEndDown(Message, frozen=True):
    """To an attention node: this front end is gone, and so are its requests."""

    server: int
    incarnation: int


class Meet(Message, frozen=True):
    """To an attention node: meet this incarnation of an expert node, and say Met. address: as in
    `Opened`; None where both are on one host."""

    expert: int
    incarnation: int
    address: tuple[str, int] | None = None


class Prepare(Message, frozen=True):
    """Read, while serving, what this node has by the placement and the weights and has not loaded,
    and say Prepared; an Enter with them is told only then. Attention nodes are told of weights
    only. Takes the place of an earlier one, to which no answer comes any more. ticket: counts
    them. givers: expert nodes that may be asked for experts whose files lack on a host."""

    ticket: int
    placement: Placement
    weights: WeightFiles = OF_FOLDER
    givers: tuple[GivingNode, ...] = ()


class GetStats(Message, frozen=True):
    """Ask every node for its counters. The API server and an owner may ask the supervisor."""

    ticket: int


class KeepSpans(Message, frozen=True):
    """Have every node keep its latest `count` spans of work from now on; 0: none. May be asked as
    GetStats may."""

    count: int


class GetSpans(Message, frozen=True):
    """Ask a process for the spans that its nodes have kept; they keep them no longer. May be asked
    as GetStats may."""

    ticket: int


class Resized(Message, frozen=True):
    """The answer to Resize, Release or Renew: it is done, after so many seconds, or why it isn't.

    attention, experts: the nodes that are wanted now.
    """

    ticket: int
    attention: list[int]
    experts: list[int]
    seconds: float
    error: str | None = None


class WeightsUpdated(Message, frozen=True):
    """The answer to UpdateWeights: every node computes with them, after so many seconds; or why
    none does. version: the name of those that all compute with now."""

    ticket: int
    version: str
    seconds: float
    error: str | None = None


class Reload(Message, frozen=True):
    """To an API server: these keys and limits count from now on (ServingOptions, QueueLimits)."""

    api_keys: tuple[str, ...]
    admin_keys: tuple[str, ...]
    queued: int | None
    queue_seconds: float | None
    total_seconds: float | None
    recovery_seconds: float


class Event(msgspec.Struct, frozen=True, array_like=True):
    """What happened to nodes, in words for whoever watches them. at: seconds since 1970."""

    at: float
    text: str


class Away(msgspec.Struct, frozen=True):
    """A process that was lost and isn't back. since: seconds since 1970. returning: another one has
    been started in its place."""

    since: float
    returning: bool = False


class Chronicle(Message, frozen=True):
    """To every API server, each time that it has changed: it takes the place of the one before, so
    that all tell the same, and one that was started later does too.

    events: the latest, oldest first. away: by the node's name. restarts: of each node and API
    server that was started again, so many times; those among them that have left are left out.
    """

    events: list[Event] = field(default_factory=list)
    away: dict[str, Away] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)


class Drain(Message, frozen=True):
    """To the API server: refuse new requests, let those admitted finish, then say Drained."""


class Stop(Message, frozen=True):
    """End in order; the child exits within the bound that the supervisor keeps."""
