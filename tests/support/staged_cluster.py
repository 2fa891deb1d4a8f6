"""Nodes on a late device, or on the host, over the host's own slots: what `m2n.staged` is for."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from megainfer.attention_node.node import AttentionNode
from megainfer.compute.backend import Backend
from megainfer.device import HOST, Device
from megainfer.expert_node.node import ExpertNode
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.local import LocalHub
from megainfer.m2n.mailbox import AttentionPort, ExpertPort
from megainfer.m2n.staged import StagedAttentionPort, StagedExpertPort
from tests.support.fake_backend import FakeBackend, TorchWork
from tests.support.fake_device import FakeDevice
from tests.support.local_cluster import Hub, LocalCluster


class StagedHub:
    """The local road, staged for the roles that are on the device."""

    def __init__(self, geometry: Geometry, attention: Device, experts: Device) -> None:
        self._hub = LocalHub(geometry)
        self._attention, self._experts = attention, experts

    def attention_port(self, index: int) -> AttentionPort:
        port = self._hub.attention_port(index)
        return port if self._attention.is_host else StagedAttentionPort(port, self._attention)

    def expert_port(self, index: int) -> ExpertPort:
        port = self._hub.expert_port(index)
        return port if self._experts.is_host else StagedExpertPort(port, self._experts)


class StagedCluster(LocalCluster):
    """attention, experts: where each role computes; every node on the device has its own stream."""

    def __init__(
        self, attention: Device, experts: Device, folder: Path, m: int, *nodes: int, **options: Any
    ) -> None:
        self._roles = {AttentionNode: attention, ExpertNode: experts}
        self._building = attention
        with self._work():
            super().__init__(folder, m, *nodes, kernels="reference", dtype="float32", **options)
        for device in {attention, experts}:
            if isinstance(device, FakeDevice):
                device.synchronize()  # weights, for whichever stream
        self._streams = {unit: self._roles[type(unit)].stream() for unit in self.members()}

    def turn(self) -> bool:
        """See `LocalCluster.turn`."""
        worked = []
        for unit in self.members():
            device = self._roles[type(unit)]
            with self._work(), device.on(self._streams[unit]):
                worked.append(unit.run_once())
        return any(worked)

    def _hub(self, geometry: Geometry) -> Hub:
        return StagedHub(geometry, self._roles[AttentionNode], self._roles[ExpertNode])

    def _expert(self, hub: Hub, node: int, m: int) -> ExpertNode:
        self._building = self._roles[ExpertNode]
        return super()._expert(hub, node, m)

    def _backend(self) -> Backend:
        device = self._building
        return FakeBackend(device) if isinstance(device, FakeDevice) else super()._backend()

    def _work(self) -> AbstractContextManager[object]:
        """Within it, what torch is asked to do with the memory of the devices is their work."""
        stack = ExitStack()
        for device in {*self._roles.values()} - {HOST}:
            assert isinstance(device, FakeDevice)
            stack.enter_context(TorchWork(device))
        return stack
