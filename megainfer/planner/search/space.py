"""What may be deployed at all: the larger space that the search goes through."""

from collections.abc import Iterator
from dataclasses import dataclass

from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.rates import rows_grid

Key = tuple[object, ...]
DEFAULT_TPS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Space:
    """tps: devices that a node may have, within one scale-up domain. most_micro_batches: the
    largest m. most_rows: sequences of one micro-batch on one attention node, at most."""

    tps: tuple[int, ...] = DEFAULT_TPS
    most_micro_batches: int = 4
    most_rows: int = 8192

    def widths(self, device: Device, count: int) -> Iterator[int]:
        """How many of these devices a node may have."""
        return (tp for tp in self.tps if tp <= min(device.link.devices, count))

    @property
    def rows(self) -> tuple[int, ...]:
        return rows_grid(self.most_rows)


@dataclass(frozen=True, slots=True)
class Family:
    """Plans that differ only in how many attention nodes, micro-batches and sequences they have."""

    device: Device  # of attention
    tp: int
    experts: Nodes

    @property
    def key(self) -> Key:
        experts = self.experts
        return self.device.name, self.tp, experts.device.name, experts.tp, experts.count

    def deployment(self, nodes: int, micro_batches: int, rows: int) -> Deployment:
        return Deployment(Nodes(self.device, self.tp, nodes), self.experts, micro_batches, rows)

    def most_nodes(self, inventory: Inventory) -> int:
        """Attention nodes that there are devices for beside the experts'."""
        left = inventory.count(self.device)
        if self.device.name == self.experts.device.name:
            left -= self.experts.devices
        return left // self.tp


def node_counts(experts: int) -> tuple[int, ...]:
    """How many expert nodes may share so many experts: the fewest for each number of experts that
    the fullest one then holds.

    >>> node_counts(8)
    (1, 2, 3, 4, 8)
    """
    return tuple(sorted({-(-experts // -(-experts // nodes)) for nodes in range(1, experts + 1)}))


def families(space: Space, inventory: Inventory, experts: int) -> Iterator[Family]:
    """All that there are devices for at least once."""
    for nodes in expert_nodes(space, inventory, experts):
        for device in inventory.devices:
            for tp in space.widths(device, inventory.count(device)):
                family = Family(device, tp, nodes)
                if family.most_nodes(inventory) >= 1:
                    yield family


def expert_nodes(space: Space, inventory: Inventory, experts: int) -> Iterator[Nodes]:
    """All the expert nodes of an instance that there are devices for."""
    for device in inventory.devices:
        for tp in space.widths(device, inventory.count(device)):
            for count in node_counts(experts):
                if tp * count <= inventory.count(device):
                    yield Nodes(device, tp, count)


def colocated(space: Space, inventory: Inventory, experts: int) -> Iterator[Deployment]:
    """The baselines, without rows: tensor parallelism alone, and data-parallel attention over all
    the devices that the experts are spread over."""
    for device in inventory.devices:
        count = inventory.count(device)
        for tp in space.widths(device, count):
            yield Deployment(
                Nodes(device, tp, 1), Nodes(device, tp, 1), micro_batches=1, rows=1, together=True
            )
            for devices in node_counts(experts):
                if devices > 1 and devices % tp == 0 and devices <= count:
                    yield Deployment(
                        Nodes(device, tp, devices // tp),
                        Nodes(device, 1, devices),
                        micro_batches=1,
                        rows=1,
                        together=True,
                    )
