"""What may be deployed at all: the larger space that the search goes through."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from megainfer.errors import ConfigError
from megainfer.planner.formulas import ENOUGH_MICRO_BATCHES
from megainfer.planner.hardware import Device
from megainfer.planner.search.costs import Costs
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.rates import rows_grid

Key = tuple[object, ...]
DEFAULT_TPS = (1, 2, 4, 8, 16)
FEW_NODES = 16


@dataclass(frozen=True, slots=True)
class Space:
    """tps: devices that a node may have, within one scale-up domain. most_micro_batches: the
    largest m. most_rows: sequences of one micro-batch on one attention node, at most. spares:
    experts that an expert node may hold beyond its share, where some are more popular."""

    tps: tuple[int, ...] = DEFAULT_TPS
    most_micro_batches: int = ENOUGH_MICRO_BATCHES
    most_rows: int = 8192
    spares: tuple[int, ...] = (0, 1, 2, 4)

    def widths(self, device: Device, count: int) -> Iterator[int]:
        """How many of these devices a node may have."""
        return (tp for tp in self.tps if tp <= min(device.link.devices, count))

    @property
    def rows(self) -> tuple[int, ...]:
        return rows_grid(self.most_rows)


@dataclass(frozen=True, slots=True)
class Family:
    """Plans that differ only in how many attention nodes, micro-batches, sequences and spare
    experts they have. spares: that each expert node may hold."""

    device: Device  # of attention
    tp: int
    experts: Nodes
    spares: tuple[int, ...] = (0,)

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

    def split(self) -> Iterator["Family"]:
        """For each number of spare experts one that has it."""
        for spares in self.spares:
            yield replace(self, experts=replace(self.experts, spares=spares), spares=(spares,))

    def most_nodes(self, inventory: Inventory) -> int:
        """Attention nodes that there are devices for beside the experts'."""
        left = inventory.count(self.device)
        if self.device.name == self.experts.device.name:
            left -= self.experts.devices
        return left // self.tp


def node_counts(experts: int, alike: bool = True) -> tuple[int, ...]:
    """How many expert nodes may share so many experts: the fewest for each number of experts that
    the fullest one then holds. With more of them it would have as much to do.

    alike: all are as popular. Where not, further nodes leave room beside popular ones, so that all
    numbers to `FEW_NODES` are looked at; of more, spare experts do as much.

    >>> node_counts(8), node_counts(8, alike=False)
    ((1, 2, 3, 4, 8), (1, 2, 3, 4, 5, 6, 7, 8))
    """
    counts = {-(-experts // -(-experts // nodes)) for nodes in range(1, experts + 1)}
    if not alike:
        counts.update(range(1, min(experts, FEW_NODES) + 1))
    return tuple(sorted(counts))


def families(
    space: Space, inventory: Inventory, costs: Costs, fitting: bool = True
) -> Iterator[Family]:
    """All that there are devices for at least once. fitting: and whose expert nodes have the memory
    for their experts."""
    roles = list(attention_nodes(space, inventory, costs))
    for nodes in expert_nodes(space, inventory, costs):
        possible = _spares(space, costs, nodes.count)
        if fitting:
            possible = tuple(spares for spares in possible if _fits(costs, nodes, spares))
        for device, tp in roles if possible else ():
            family = Family(device, tp, nodes, possible)
            if family.most_nodes(inventory) >= 1:
                yield family


def _fits(costs: Costs, nodes: Nodes, spares: int) -> bool:
    """Whether a device has the memory for its experts."""
    stage = costs.experts(nodes.device, nodes.tp, nodes.count, spares)
    return stage.memory(1, 1, 1).total <= nodes.device.memory_bytes


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
            for count in node_counts(costs.num_experts, costs.experts_alike):
                if tp * count <= available:
                    yield Nodes(device, tp, count)


def colocated(space: Space, inventory: Inventory, costs: Costs) -> Iterator[Deployment]:
    """The baselines, with one sequence a group: data-parallel attention over all the devices that
    the experts are spread over, whole or each of them cut over a few, and tensor parallelism alone
    where one group has all."""
    for device, tp in attention_nodes(space, inventory, costs):
        for experts in expert_nodes(space, inventory, costs):
            if experts.device.name == device.name and experts.devices % tp == 0:
                attention = Nodes(device, tp, experts.devices // tp)
                for spares in _spares(space, costs, experts.count):
                    yield _together(attention, replace(experts, spares=spares))


def _spares(space: Space, costs: Costs, count: int) -> tuple[int, ...]:
    """Experts that each of `count` nodes may hold beyond its share; no more than there are."""
    most = 0 if costs.experts_alike else costs.num_experts - -(-costs.num_experts // count)
    return tuple(spares for spares in space.spares if spares <= most)


def _together(attention: Nodes, experts: Nodes) -> Deployment:
    return Deployment(attention, experts, micro_batches=1, rows=1, together=True)
