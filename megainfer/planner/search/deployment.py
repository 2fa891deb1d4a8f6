"""Which devices do what: both roles apart, or all on the same devices."""

from dataclasses import dataclass

from megainfer.planner.hardware import Device


@dataclass(frozen=True, slots=True)
class Nodes:
    """`count` nodes of one role alike, each `tp` devices with tensor parallelism between them."""

    device: Device
    tp: int
    count: int

    @property
    def devices(self) -> int:
        return self.tp * self.count


@dataclass(frozen=True, slots=True)
class Route:
    """Who sends to whom. together: both ends are the same devices (colocated), so that what a
    device has for itself isn't sent."""

    attention: Nodes
    experts: Nodes
    together: bool = False


@dataclass(frozen=True, slots=True)
class Deployment:
    """One instance and how often it is there.

    together False: `attention.devices + experts.devices` devices; micro-batches take turns.
    together True: the colocated baseline, attention data parallel over `attention.count` groups,
    experts spread over the same devices, `experts.count` of them times `experts.tp`; one batch.
    rows: sequences that decode in one micro-batch of one attention node (b_a).
    """

    attention: Nodes
    experts: Nodes
    micro_batches: int
    rows: int
    replicas: int = 1
    together: bool = False

    @property
    def route(self) -> Route:
        return Route(self.attention, self.experts, self.together)

    @property
    def batch(self) -> int:
        """Sequences that decode at a time in one instance: b_a m n_a = B."""
        return self.rows * self.micro_batches * self.attention.count

    @property
    def roles(self) -> tuple[Nodes, ...]:
        """Whose devices are paid for."""
        return (self.attention,) if self.together else (self.attention, self.experts)

    @property
    def devices(self) -> int:
        """Of one instance."""
        return sum(role.devices for role in self.roles)

    @property
    def price(self) -> float:
        """Of one instance's devices, an L20 = 1."""
        return sum(role.devices * role.device.price for role in self.roles)

    @property
    def watts(self) -> float:
        """Of one instance's devices."""
        return sum(role.devices * role.device.watts for role in self.roles)
