"""What a process gets from the supervisor that forks it."""

from dataclasses import dataclass

from megainfer.launch.control import ParentLink
from megainfer.launch.heartbeat import Page
from megainfer.messages.message import Role
from megainfer.messages.weights import GivingNode, WeightFiles
from megainfer.topology import Placement


@dataclass(frozen=True, slots=True)
class Station:
    """link: to the supervisor. page: for its heartbeat. incarnation: how many processes this node
    has been before."""

    link: ParentLink
    page: Page
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class NodeTask:
    """What a node begins with. measures: whether the choice of m waits for what its stages take.
    placement: by which an expert node loads its experts, the plan's where there is none. givers:
    other expert nodes that it may ask for those whose files lack on its host; None: nodes of this
    instance give each other none. lease: seconds of silence after which a host counts as lost,
    where nodes are on several."""

    role: Role
    node: int
    measures: bool
    placement: Placement | None
    weights: WeightFiles
    givers: tuple[GivingNode, ...] | None = None
    lease: float = 0.0
