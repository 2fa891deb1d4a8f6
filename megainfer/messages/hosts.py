"""Between hosts: an agent and the supervisor, and a node there with its stand-in here.

What supervisor and child say to each other (`messages.supervision`) travels between a stand-in and
an attendant as it is; here is what they add.
"""

import msgspec

from megainfer.messages.message import Message, Role
from megainfer.messages.supervision import FromChild, ToChild
from megainfer.messages.weights import GivingNode, WeightFiles
from megainfer.topology import Placement


class Pulse(Message, frozen=True):
    """Whoever sends it lives.

    now: its monotonic clock. heard: that of the other, as its latest pulse had it, if one has come;
    held: seconds since then. See `hosts.other_clock`.
    """

    now: float = 0.0
    heard: float | None = None
    held: float = 0.0


class Join(Message, frozen=True):
    """From an agent: nodes may run here.

    name: of the host, unlike any other's. version: of the package. address, port: where the agent
    listens for stand-ins; nodes listen at that address, too. machine: a `launch.machine.Machine`,
    as msgpack has it. gpus: as `launch.hosts.places.Host` has them.
    """

    name: str
    version: str
    address: str
    port: int
    machine: bytes
    gpus: tuple[int, ...] | None = None


class Joined(Message, frozen=True):
    """To an agent: it is one of the instance's hosts."""


class Refused(Message, frozen=True):
    """To an agent or a stand-in: it is not to be, for good, because of this."""

    reason: str


class Dismissed(Message, frozen=True):
    """To an agent: the instance ends."""


class Peer(msgspec.Struct, frozen=True):
    """Another host of the instance. address, port: where its agent listens."""

    host: str
    address: str
    port: int


class RankThere(msgspec.Struct, frozen=True):
    """A rank of a node that is to be on another host. peers: for that host, as of `StartNode`."""

    rank: int
    at: Peer
    peers: tuple[Peer, ...] = ()


class StartNode(Message, frozen=True):
    """From a stand-in, first of all: start this incarnation of a node, and be its supervisor.

    plan: as `launch.plan_codec` writes it, without the key of M2N. measures, placement, weights: as
    its main function takes them; attention nodes need no placement. lease: seconds of silence after
    which either side counts as lost. peers: hosts from which weights may be copied that lack on
    this one. elsewhere: its ranks that aren't to be on this host. givers: as a `NodeTask` has them;
    where there are some, an expert node asks them first.
    """

    role: Role
    node: int
    incarnation: int
    plan: bytes
    measures: bool
    placement: Placement | None
    weights: WeightFiles
    lease: float
    peers: tuple[Peer, ...] = ()
    givers: tuple[GivingNode, ...] | None = None
    elsewhere: tuple[RankThere, ...] = ()


class StartRank(Message, frozen=True):
    """From the stand-in of a rank, first of all: start this rank of a node whose first rank is on
    another host, and is its supervisor by way of that stand-in.

    address, port: where the first rank listens. The others as of `StartNode`.
    """

    role: Role
    node: int
    rank: int
    incarnation: int
    plan: bytes
    placement: Placement | None
    weights: WeightFiles
    lease: float
    address: str
    port: int
    peers: tuple[Peer, ...] = ()


class NodeEnded(Message, frozen=True):
    """From an attendant, last of all: its process has ended. cause: how, in words; None: in order.

    befell: it was done to it (a signal, a hang): it has not failed by its own words.
    """

    cause: str | None
    befell: bool = False


class LogLines(Message, frozen=True):
    """What the node has written to its standard output and error, without the ends of lines."""

    lines: list[str]


class ForNode(Message, frozen=True):
    """From a front end to an attention node: one message of `messages.requests`, as it came."""

    server: int
    incarnation: int
    data: bytes


class ForFrontEnd(Message, frozen=True):
    """From an attention node to a front end, so too."""

    server: int
    incarnation: int
    data: bytes


class ProbeLink(Message, frozen=True):
    """From `megainfer doctor`: measure the way from this host to the agent that listens there."""

    host: str
    address: str
    port: int


class LinkProbed(Message, frozen=True):
    """What was found. round_trip_seconds: the median. bytes_per_second: over one TCP connection to
    a port that was free. ahead_seconds: how far the other's clock is before this one's, known to
    half a round trip. error: why there is nothing more."""

    round_trip_seconds: float = 0.0
    bytes_per_second: float = 0.0
    ahead_seconds: float = 0.0
    error: str | None = None


class Echo(Message, frozen=True):
    """Between agents: say Echoed."""


class Echoed(Message, frozen=True):
    """now: the wall clock of whoever says it, in seconds since 1970."""

    now: float


class OpenPort(Message, frozen=True):
    """Between agents: take bytes at a free port."""


class PortOpened(Message, frozen=True):
    """ticket: with which what is sent there begins."""

    port: int
    ticket: bytes


class PortRead(Message, frozen=True):
    """Bytes that came at the port, and from the first of them to the end of file, in seconds."""

    received: int
    seconds: float


class ListWeights(Message, frozen=True):
    """Between agents: which files with weights are there of the model of this plan?"""

    plan: bytes


class WeightsListed(Message, frozen=True):
    """sizes: bytes of each file of the model's folder, by its name."""

    sizes: dict[str, int]


class ReadWeights(Message, frozen=True):
    """Between agents: so many bytes, from the offset on, of a file that was listed; or fewer."""

    name: str
    offset: int
    size: int


class WeightsRead(Message, frozen=True):
    """Fewer than were asked for: the file ends there, or no more are given at once."""

    data: bytes


ToAgent = Joined | Refused | Dismissed | Pulse
FromAgent = Join | Pulse
Probing = ProbeLink | Echo | OpenPort
Probed = LinkProbed | Echoed | PortOpened | PortRead
Fetching = ListWeights | ReadWeights
Fetched = WeightsListed | WeightsRead
ToAttendant = ToChild | StartNode | StartRank | ForNode | Probing | Fetching | Pulse
FromAttendant = FromChild | NodeEnded | LogLines | ForFrontEnd | Refused | Probed | Fetched | Pulse

to_agent_decoder: "msgspec.msgpack.Decoder[ToAgent]" = msgspec.msgpack.Decoder(ToAgent)
from_agent_decoder: "msgspec.msgpack.Decoder[FromAgent]" = msgspec.msgpack.Decoder(FromAgent)
to_attendant_decoder: "msgspec.msgpack.Decoder[ToAttendant]" = msgspec.msgpack.Decoder(ToAttendant)
from_attendant_decoder: "msgspec.msgpack.Decoder[FromAttendant]" = msgspec.msgpack.Decoder(
    FromAttendant
)
