"""Who takes part, in one epoch after the other."""

from dataclasses import dataclass, replace

from megainfer.errors import ConfigError
from megainfer.topology.placement import Placement
from megainfer.topology.weights import FOLDERS_OWN, WeightVersion


@dataclass(frozen=True, slots=True)
class Membership:
    """Who takes part and where experts are, until the next one.

    epoch: counts memberships; M2N's messages carry it. attention, experts: the nodes that take
    part, ascending. placement: whose experts are all on such nodes. weights: what all of them
    compute with.

    Raises ConfigError, naming the values, where it contradicts itself.
    """

    epoch: int
    attention: tuple[int, ...]
    experts: tuple[int, ...]
    placement: Placement
    weights: WeightVersion = FOLDERS_OWN

    def __post_init__(self) -> None:
        for role, nodes in (("attention", self.attention), ("expert", self.experts)):
            if not nodes or list(nodes) != sorted(set(nodes)) or nodes[0] < 0:
                raise ConfigError(f"{list(nodes)} are no {role} nodes in ascending order")
        members = set(self.experts)
        if self.placement.holders <= members:
            return
        for layer in self.placement.layers:
            holders = {node for nodes in self.placement.owners(layer) for node in nodes}
            if not holders <= members:
                raise ConfigError(
                    f"experts of layer {layer} are on nodes {sorted(holders)}, members are "
                    f"{list(self.experts)}"
                )

    def without_attention(self, node: int) -> "Membership":
        """The next epoch's, when this attention node leaves."""
        left = tuple(n for n in self.attention if n != node)
        return replace(self, epoch=self.epoch + 1, attention=left)

    def without_expert(self, node: int) -> "Membership":
        """The next epoch's, when this expert node leaves. Raises ConfigError where replicas don't
        hold all that it did."""
        left = tuple(n for n in self.experts if n != node)
        placement = self.placement.without(node)
        return replace(self, epoch=self.epoch + 1, experts=left, placement=placement)


def first_membership(num_attention: int, placement: Placement) -> Membership:
    """Epoch 1: everybody takes part.

    >>> from megainfer.topology import contiguous_placement
    >>> first_membership(2, contiguous_placement(8, 3, layers=[0])).experts
    (0, 1, 2)
    """
    experts = tuple(range(placement.num_nodes))
    return Membership(1, tuple(range(num_attention)), experts, placement)
