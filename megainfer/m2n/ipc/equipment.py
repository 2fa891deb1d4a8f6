"""What a node on a device brings to its port."""

from typing import NamedTuple

from megainfer.device import Device
from megainfer.errors import ConfigError
from megainfer.m2n.ipc.publisher import HostWords
from megainfer.m2n.packing import TORCH_PACKING, Packing
from megainfer.m2n.slotted.payloads import DeviceMemory


class Equipment(NamedTuple):
    """memory: of its payloads. words: how its streams show messages. packing: its kernels."""

    memory: DeviceMemory
    words: HostWords
    packing: Packing = TORCH_PACKING


def equipment_of(device: Device | None, packing: Packing | None) -> Equipment:
    """Of a node that computes on `device`; `packing` is torch's unless given.

    Raises ConfigError where it is no NVIDIA GPU, or one that cannot share its memory.
    """
    if device is None or device.torch.type != "cuda":
        name = "the host" if device is None else device.name
        raise ConfigError(
            f"the road 'ipc' joins nodes on NVIDIA GPUs, this one is on {name}; take 'shm'"
        )
    from megainfer.m2n.ipc.cuda_driver import CudaDriver  # what it needs is there with such a GPU
    from megainfer.m2n.ipc.cuda_memory import CudaMemory
    from megainfer.m2n.ipc.cuda_words import CudaWords

    driver = CudaDriver.load()
    return Equipment(
        CudaMemory(device, driver), CudaWords(device, driver), packing or TORCH_PACKING
    )
