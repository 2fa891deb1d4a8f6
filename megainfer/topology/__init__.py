"""Which nodes take part, which expert lives where, and on which cores they run.

Pure data: no torch, no processes.
"""

from megainfer.topology.cores import (
    CoreAssignment,
    Socket,
    assign_cores,
    assign_cores_beside,
    assign_sockets,
    have_own_cores,
    join_cores,
    share_cores,
)
from megainfer.topology.dealing import Owners, contiguous_placement, placement_of
from megainfer.topology.membership import Membership, first_membership
from megainfer.topology.placement import EMPTY, WAYS, Home, Placement, Slots, Table, placed
from megainfer.topology.shard import WHOLE, Shard
from megainfer.topology.weights import FOLDERS_OWN, WeightVersion

__all__ = [
    "EMPTY",
    "FOLDERS_OWN",
    "WAYS",
    "WHOLE",
    "CoreAssignment",
    "Home",
    "Membership",
    "Owners",
    "Placement",
    "Shard",
    "Slots",
    "Socket",
    "Table",
    "WeightVersion",
    "assign_cores",
    "assign_cores_beside",
    "assign_sockets",
    "contiguous_placement",
    "first_membership",
    "have_own_cores",
    "join_cores",
    "placed",
    "placement_of",
    "share_cores",
]
