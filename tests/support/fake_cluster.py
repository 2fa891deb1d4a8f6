"""Whole nodes on a device that works late: over the fake backend and the fake road."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megainfer.attention_node.node import AttentionNode
from megainfer.compute.backend import Backend
from megainfer.expert_node.node import ExpertNode
from megainfer.m2n.geometry import Geometry
from megainfer.topology import Membership
from tests.support.fake_backend import FakeBackend, TorchWork
from tests.support.fake_device import FakeDevice
from tests.support.fake_road import FakeHub
from tests.support.fake_stream import FakeStream
from tests.support.local_cluster import LocalCluster

Node = AttentionNode | ExpertNode


class FakeCluster(LocalCluster):
    """Every node has a stream of its own; all share the device.

    backend: what makes a node's, the reference's unless given.
    """

    def __init__(
        self,
        device: FakeDevice,
        folder: Path,
        m: int,
        *nodes: int,
        backend: Callable[[FakeDevice], Backend] = FakeBackend,
        **options: Any,
    ) -> None:
        self.device = device
        self._new_backend = backend
        self._turns: list[tuple[Node, FakeStream]] = []
        with TorchWork(device):
            super().__init__(folder, m, *nodes, kernels="reference", dtype="float32", **options)
        device.synchronize()  # weights, for whichever stream
        self._turns = [(unit, device.stream()) for unit in (*self.attention, *self.experts)]

    def _hub(self, geometry: Geometry) -> FakeHub:
        self.hub = FakeHub(geometry, self.device)
        return self.hub

    def _backend(self) -> Backend:
        return self._new_backend(self.device)

    def enter(self, membership: Membership, *order: Any, **others: Any) -> None:
        """See `LocalCluster.enter`; all at once, with the weights that they have."""
        if not self._turns:  # it is being made
            super().enter(membership)
            return
        assert not order
        assert not others
        self.membership = membership
        members = self.members()
        for unit, stream in self._turns:
            if unit in members:
                with TorchWork(self.device), self.device.on(stream):
                    unit.enter(membership)

    def turn(self) -> bool:
        """See `LocalCluster.turn`."""
        worked = []
        for unit, stream in self._turns:
            with TorchWork(self.device), self.device.on(stream):
                worked.append(unit.run_once())
        return any(worked)
