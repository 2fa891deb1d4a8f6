"""Machines with GPUs, as they are described to those who plan."""

from dataclasses import replace

from megainfer.launch.machine import Machine
from megainfer.launch.nvml import Gpu

GIB = 2**30
NCCL_ON_ONE_GPU = {
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "NCCL_MNNVL_ENABLE": "0",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_CUMEM_ENABLE": "0",
}
"""By which ranks share a GPU, each with a host of its own as far as NCCL knows (NCCL_HOSTID)."""
HOST = Machine(
    tuple(range(64)),
    memory=2048 * GIB,
    available_memory=2000 * GIB,
    bfloat16_arithmetic=True,
    gpu_problem="no libnvidia-ml.so.1: there is no NVIDIA driver",
)


def h200(number: int) -> Gpu:
    """One of a machine's, each of which reaches all others."""
    return Gpu(
        uuid=f"GPU-{number:08}",
        name="NVIDIA H200",
        memory=141 * GIB,
        free_memory=140 * GIB,
        capability=(9, 0),
    )


def machine_of(*gpus: Gpu) -> Machine:
    """With these GPUs, on which one can compute."""
    return replace(HOST, gpus=gpus, gpu_problem="")


H200X8 = machine_of(*(h200(number) for number in range(8)))
