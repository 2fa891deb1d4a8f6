"""What a node begins with, wherever its processes are forked."""

from dataclasses import dataclass

from megainfer.messages.message import Role
from megainfer.messages.weights import WeightFiles
from megainfer.topology import Placement


@dataclass(frozen=True, slots=True)
class NodeTask:
    """What a node begins with. measures: whether the choice of m waits for what its stages take.
    placement: by which an expert node loads its experts, the plan's where there is none."""

    role: Role
    node: int
    measures: bool
    placement: Placement | None
    weights: WeightFiles
