"""Whole nodes over the road `dist`, all in the test's own thread: their links have others."""

from collections.abc import Sequence
from time import monotonic

from megainfer.m2n.dist.ports import DistAttentionPort, DistExpertPort
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.roads import Seat
from megainfer.topology import Membership
from tests.support.local_cluster import LocalCluster
from tests.support.m2n_cluster import SECONDS, road_of

PAUSE_SECONDS = 1e-3


class DistHub:
    """The ports of an instance's nodes, each made once."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._road = road_of("dist")
        self.attention: list[DistAttentionPort] = []
        self.experts: list[DistExpertPort] = []

    def attention_port(self, index: int) -> DistAttentionPort:
        self.attention.append(DistAttentionPort(self._road, Seat(self._geometry, index)))
        return self.attention[-1]

    def expert_port(self, index: int) -> DistExpertPort:
        self.experts.append(DistExpertPort(self._road, Seat(self._geometry, index)))
        return self.experts[-1]

    def meet(self) -> None:
        """Everybody everybody."""
        for port in self.attention:
            for expert in range(len(self.experts)):
                port.visit((expert, 0), monotonic() + SECONDS)


class DistCluster(LocalCluster):
    """`LocalCluster`, whose messages take their time."""

    _network: DistHub
    _met = False

    def _hub(self, geometry: Geometry) -> DistHub:
        self._network = DistHub(geometry)
        return self._network

    def enter(self, membership: Membership, order: Sequence[int] | None = None) -> None:
        if not self._met:
            self._met = True
            self._network.meet()
        super().enter(membership, order)

    def turn(self) -> bool:
        worked = super().turn()
        if not worked:
            self.members()[0].port.wait(PAUSE_SECONDS)
        return worked
