"""Where the experts of a layer live, for kernels."""

import torch

from megainfer.compute.reference.kernels import Homes, expert_homes
from megainfer.device import Device
from megainfer.topology import WAYS, Placement


class HomeTable:
    """`Homes` of one layer on the device, for all ways of all experts.

    It stays where it is when experts move, since kernels that were captured go on reading there.
    table: int32 [2, E, WAYS], the nodes, then the local ids.
    """

    def __init__(self, placement: Placement, layer: int, device: Device) -> None:
        self._layer, self._device = layer, device
        self.table = device.empty((2, placement.num_experts, WAYS), torch.int32)
        self.move(placement)

    def move(self, placement: Placement) -> None:
        """To the homes of a placement of as many experts, for the work that is given later."""
        homes = expert_homes(placement, self._layer)
        self.num_nodes, self.nodes = homes.num_nodes, homes.nodes
        self.table.copy_(self._device.upload(_of_all_ways(homes)))


def _of_all_ways(homes: Homes) -> torch.Tensor:
    both = torch.stack((homes.node.int(), homes.local_id))
    return both.expand(-1, -1, WAYS).contiguous()
