"""What may be deployed at all: the larger space that the search goes through."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.planner.hardware import Device
from megainfer.planner.search.costs import Costs
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

    @property
    def most_in_one_domain(self) -> int:
        """Attention nodes that a scale-up domain has room for beside all expert nodes; below 1
        where it has none."""
        if self.device.name != self.experts.device.name:
            return 0
        return (self.device.link.devices - self.experts.devices) // self.tp

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


def families(
    space: Space, inventory: Inventory, costs: Costs, fitting: bool = True
) -> Iterator[Family]:
    """All that there are devices for at least once. fitting: and whose expert nodes have the memory
    for their experts."""
    roles = list(attention_nodes(space, inventory, costs))
    for nodes in expert_nodes(space, inventory, costs):
        needs = costs.experts(nodes.device, nodes.tp, nodes.count).memory(1, 1, 1)
        if fitting and needs.total > nodes.device.memory_bytes:
            continue
        for device, tp in roles:
            family = Family(device, tp, nodes)
            if family.most_nodes(inventory) >= 1:
                yield family


def attention_nodes(
    space: Space, inventory: Inventory, costs: Costs
) -> Iterator[tuple[Device, int]]:
    """Devices and how many an attention node may have of them."""
    for device, count in inventory.stock:
        for tp in space.widths(device, count):
            # A ConfigError here says that the model's heads can't be shared by so many.
            with suppress(ConfigError):
                costs.attention(device, tp)
                yield device, tp


def expert_nodes(space: Space, inventory: Inventory, costs: Costs) -> Iterator[Nodes]:
    """All the expert nodes of an instance that there are devices for."""
    for device, available in inventory.stock:
        for tp in space.widths(device, available):
            for count in node_counts(costs.num_experts):
                if tp * count <= available:
                    yield Nodes(device, tp, count)


def colocated(space: Space, inventory: Inventory, costs: Costs) -> Iterator[Deployment]:
    """The baselines, with one sequence a group: tensor parallelism alone, and data-parallel
    attention over all the devices that the experts are spread over."""
    for device, tp in attention_nodes(space, inventory, costs):
        yield _together(Nodes(device, tp, 1), Nodes(device, tp, 1))
        for devices in node_counts(costs.num_experts):
            if devices > 1 and devices % tp == 0 and devices <= inventory.count(device):
                yield _together(Nodes(device, tp, devices // tp), Nodes(device, 1, devices))


def _together(attention: Nodes, experts: Nodes) -> Deployment:
    return Deployment(attention, experts, micro_batches=1, rows=1, together=True)
