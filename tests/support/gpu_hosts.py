"""A host of an instance whose GPUs are pretended: `megainfer agent`, and what its nodes reach each
other by.

    python -m tests.support.gpu_hosts KERNELS FIRST COUNT agent ...

FIRST is the number of the first of its COUNT GPUs among those of all hosts. Nodes' device is the
host, where KERNELS compute (`chaos.gpus`). On a host they take the road `ipc` with other memory for
a device's (`twin_road`); between hosts gloo moves what NCCL would, behind the interface of its
groups: no tags, no receive that is posted before its bell, payloads of the device with their count.
"""

import sys
from typing import cast

from torch.distributed import Store

from megainfer.device import Device
from megainfer.launch import machine
from megainfer.launch.nvml import Nvidia
from megainfer.m2n import roads
from megainfer.m2n.dist import groups, site
from megainfer.m2n.dist.channel import Group
from megainfer.m2n.host.ports import HostAttentionPort, HostExpertPort, listen_at_its_place
from megainfer.m2n.ipc.equipment import Equipment
from megainfer.m2n.ipc.ports import attention_port, expert_port
from megainfer.m2n.packing import Packing
from megainfer.m2n.roads import Road, Seat
from tests.support.chaos.gpus import pretend_gpus
from tests.support.gpus import h200
from tests.support.twin_road import TwinMemory, TwinWords


class GlooAsNccl(groups.GlooGroups):
    """`groups.Groups` of a pretended GPU. On the wire they are what they pretend to be."""

    kind = "nccl"
    tags = False

    def __init__(self, host: str, device: Device) -> None:
        super().__init__(host)
        self.device = device

    def make(self, store: Store, rank: int) -> Group:
        """See `Groups.make`."""
        return cast(Group, super().make(store, rank))


def groups_for(kind: str, host: str, device: Device | None) -> groups.Groups:
    """As `groups.groups_for`."""
    if kind == "nccl" and device is not None:
        return GlooAsNccl(host, device)
    return groups.groups_for(kind, host, device)


def equipment_of(device: Device | None, packing: Packing | None) -> Equipment:
    """As the road's own: of the device that the node has."""
    assert device is not None
    assert not device.is_host
    memory = TwinMemory()
    memory.device = device
    made = Equipment(memory, TwinWords())
    return made if packing is None else made._replace(packing=packing)


def join_attention(
    road: Road, seat: Seat, device: Device | None, packing: Packing | None
) -> HostAttentionPort:
    """See `roads.join_attention`."""
    return attention_port(road.token, seat, road.options, equipment_of(device, packing))


def join_expert(road: Road, seat: Seat, device: Device | None) -> HostExpertPort:
    """See `roads.join_expert`."""
    port = expert_port(seat, road.options, equipment_of(device, None))
    listen_at_its_place(port, road, seat)
    return port


def pretend(kernels: str, first: int, count: int) -> None:
    """In this process, and those that it forks."""
    pretend_gpus(count, kernels)
    own = Nvidia(tuple(h200(number) for number in range(first, first + count)), "pretended")
    machine.ask_nvml = lambda: own  # type: ignore[attr-defined, assignment]  # faked
    roads.ROADS["ipc"] = "tests.support.gpu_hosts"
    site.groups_for = groups_for


def main() -> None:
    kernels, first, count = sys.argv[1:4]
    pretend(kernels, int(first), int(count))
    del sys.argv[1:4]
    from megainfer.cli import main as megainfer

    megainfer()


if __name__ == "__main__":
    main()
