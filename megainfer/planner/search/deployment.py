"""Which devices do what: both roles apart, or all on the same devices."""

from dataclasses import dataclass

from megainfer.planner.hardware import Device
from megainfer.planner.search.workload import Objective


@dataclass(frozen=True, slots=True)
class Nodes:
    """`count` nodes of one role alike, each `tp` devices with tensor parallelism between them.
    spares: experts of each layer that an expert node holds beyond its share, copies of popular ones
    (`serve --expert-replicas`)."""

    device: Device
    tp: int
    count: int
    spares: int = 0

    @property
    def devices(self) -> int:
        return self.tp * self.count

    def describe(self, role: str) -> str:
        """Such as "2 attention nodes of 8 H20"."""
        nodes = f"{self.count} {role} node{'s' if self.count > 1 else ''}"
        spares = f" with {self.spares} spare experts each" if self.spares else ""
        return f"{nodes} of {self.tp} {self.device.name}{spares}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One instance and how often it is there.

    together False: `attention.devices + experts.devices` devices; micro-batches take turns.
    together True: the colocated baseline, attention data parallel over `attention.count` groups,
    experts dealt to `experts.count` groups of `experts.tp` of the same devices; one batch.
    rows: sequences that decode in one micro-batch of one attention node (b_a).
    """

    attention: Nodes
    experts: Nodes
    micro_batches: int
    rows: int
    replicas: int = 1
    together: bool = False

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

    def spent(self, objective: Objective) -> float:
        """What the devices of one instance count for."""
        return sum(role.devices * objective.units(role.device) for role in self.roles)

    def describe(self) -> str:
        """In words, of one instance."""
        if self.together:
            spread = self._experts_together()
            groups = f"{self.devices} {self.attention.device.name} (tensor parallel "
            groups += f"{self.attention.tp}, data parallel {self.attention.count}, {spread})"
            return f"colocated on {groups}, {_sequences(self.batch)}"
        nodes = f"{self.attention.describe('attention')} and {self.experts.describe('expert')}"
        m = self.micro_batches
        turns = "1 micro-batch" if m == 1 else f"{m} micro-batches"
        return f"{nodes}, {turns} of {_sequences(self.rows)} on each attention node"

    def _experts_together(self) -> str:
        experts = self.experts
        spares = f" with {experts.spares} spare ones each" if experts.spares else ""
        if experts.count == 1:
            return "experts split like the rest"
        if experts.tp == 1:
            return f"experts whole on {experts.count} devices{spares}"
        return f"experts on {experts.count} groups of {experts.tp} devices{spares}"


def _sequences(count: int) -> str:
    """
    >>> _sequences(1), _sequences(8)
    ('1 sequence', '8 sequences')
    """
    return f"{count} sequence{'' if count == 1 else 's'}"
