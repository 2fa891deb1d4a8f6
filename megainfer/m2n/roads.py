"""Which road an instance's messages take, and how a node gets its port to it.

Each road is a room of this package with a module that opens its two ports. It is imported by the
nodes that take it, so that none needs what only another road is made of.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from megainfer.errors import ConfigError
from megainfer.m2n.geometry import Geometry
from megainfer.tls.peers import TlsFiles

if TYPE_CHECKING:  # a plan names a road in processes that have no torch
    from megainfer.device import Device
    from megainfer.m2n.mailbox import AttentionPort, ExpertPort, JoiningPort
    from megainfer.m2n.packing import Packing

ROADS = {
    "shm": "megainfer.m2n.shm.ports",
    "ipc": "megainfer.m2n.ipc.ports",
    "dist": "megainfer.m2n.dist.ports",
    "mixed": "megainfer.m2n.mixed.ports",
}
"""Name -> the module that opens its ports."""


class Wish(NamedTuple):
    """A road of `ROADS`, and where that is, or is part of it, "dist" what carries payloads there:
    see `Road`."""

    kind: str
    groups: str = "gloo"


def road_of_hosts(wish: str, attention_on_gpus: bool, experts_on_gpus: bool) -> Wish:
    """What joins the nodes of an instance on several hosts; arguments as `road_on_a_host`."""
    on_gpus = attention_on_gpus and experts_on_gpus
    return Wish("mixed" if wish == "auto" else wish, "nccl" if on_gpus else "gloo")


def road_on_a_host(wish: str, attention_on_gpus: bool, experts_on_gpus: bool) -> Wish:
    """What joins the two roles of an instance whose nodes are all on one host.

    wish: "auto", or the kind that it is to be.
    """
    on_gpus = attention_on_gpus and experts_on_gpus
    if wish == "auto":
        return Wish("ipc" if on_gpus else "shm")
    return Wish(wish, "nccl" if on_gpus and wish == "dist" else "gloo")


@dataclass(frozen=True, slots=True)
class PortOptions:
    """What a node may choose for itself.

    spin_seconds: how long `wait` looks at the slots before it sleeps, at most; only useful where
    every process has a core. mover: who moves messages into slots and out of them, one of
    `slotted.opening.MOVERS`; None: the fastest that was built. nap_seconds: how late a message may
    be noticed that a device was to publish, where that has taken longer than it looked.
    """

    spin_seconds: float = 0.0
    mover: str | None = None
    nap_seconds: float = 1e-3


DEFAULT_OPTIONS = PortOptions()
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Road:
    """How the nodes of one instance reach each other; plain data, so that a plan can be sent.

    kind: one of `ROADS`. token: a random name that keeps this instance's meeting places apart from
    any other's; other users of the machine can see it.

    Of "dist", also as part of "mixed": key: a secret that all its nodes have, of at least 32
    characters. host: the IP address at which a node listens, of one interface. groups: what carries
    payloads, "gloo" between hosts' memories or "nccl" between GPUs. tls: of the connections on
    which nodes meet, and of the bells on them; not of payloads.
    """

    kind: str
    token: str
    options: PortOptions = DEFAULT_OPTIONS
    key: str = field(default="", repr=False)
    host: str = LOOPBACK
    groups: str = "gloo"
    tls: TlsFiles | None = None

    @property
    def near(self) -> str:
        """Which of `ROADS` "mixed" has between nodes of one host."""
        return "ipc" if self.groups == "nccl" else "shm"

    def to(self, address: tuple[str, int] | None) -> str:
        """Which of `ROADS` leads to a node. address: where it is, None: on this host."""
        if self.kind != "mixed":
            return self.kind
        return self.near if address is None else "dist"


@dataclass(frozen=True, slots=True)
class Seat:
    """Which node of its role this is, in which membership, and the sizes all agreed on.

    incarnation: counts the processes that this node has been.
    """

    geometry: Geometry
    index: int
    epoch: int = 0
    incarnation: int = 0


class Opener(Protocol):
    """What the module of a road holds."""

    def join_attention(
        self, road: Road, seat: Seat, device: "Device | None", packing: "Packing | None"
    ) -> "JoiningPort":
        """See `roads.join_attention`."""

    def join_expert(self, road: Road, seat: Seat, device: "Device | None") -> "ExpertPort":
        """See `roads.join_expert`."""

    def open_attention_port(
        self,
        road: Road,
        seat: Seat,
        timeout: float,
        device: "Device | None",
        packing: "Packing | None",
    ) -> "AttentionPort":
        """See `roads.open_attention_port`."""

    def open_expert_port(
        self, road: Road, seat: Seat, timeout: float, device: "Device | None"
    ) -> "ExpertPort":
        """See `roads.open_expert_port`."""


def join_attention(
    road: Road, seat: Seat, device: "Device | None" = None, packing: "Packing | None" = None
) -> "JoiningPort":
    """A port that has met nobody yet.

    device: on which the node computes, None for the host; the port is the device's where the road
    leads there, else the host's. packing: kernels that fill payloads on a device, where torch's are
    not to. Raises ConfigError when there is no such road, or it leads to other devices only.
    """
    return _opener(road).join_attention(road, seat, device, packing)


def join_expert(road: Road, seat: Seat, device: "Device | None" = None) -> "ExpertPort":
    """A port that attention nodes meet from now on, each new incarnation in place of the last.

    Raises ConfigError as `join_attention`, or when somebody else has this node's place on the road.
    """
    return _opener(road).join_expert(road, seat, device)


def open_attention_port(
    road: Road,
    seat: Seat,
    timeout: float,
    device: "Device | None" = None,
    packing: "Packing | None" = None,
) -> "AttentionPort":
    """Meet all expert nodes, which may come later than this one; all are members of the epoch.

    timeout: seconds for all of it. Raises NodeDied when a node does not come in time, ProtocolError
    when it is of another version, geometry, epoch or user, ConfigError as `join_attention`.
    """
    return _opener(road).open_attention_port(road, seat, timeout, device, packing)


def open_expert_port(
    road: Road, seat: Seat, timeout: float, device: "Device | None" = None
) -> "ExpertPort":
    """Meet all attention nodes; arguments and errors as in `open_attention_port`."""
    return _opener(road).open_expert_port(road, seat, timeout, device)


def _opener(road: Road) -> Opener:
    if road.kind not in ROADS:
        raise ConfigError(f"no M2N road is called {road.kind!r}; there are: {', '.join(ROADS)}")
    return cast(Opener, import_module(ROADS[road.kind]))
