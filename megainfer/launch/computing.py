"""What a process of a plan computes with."""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch

from megainfer.compute.backend import Backend
from megainfer.compute.selection import IMPLEMENTATIONS, Precision, open_backend
from megainfer.device.failures import ends_the_node
from megainfer.launch.devices import Devices, NumberedGpu
from megainfer.launch.machine import VISIBLE
from megainfer.launch.plan import Plan
from megainfer.messages.message import Role

CUDA_SETTINGS = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # streams that don't wait for each other in one queue
    "CUDA_MODULE_LOADING": "EAGER",  # a kernel loaded when first used would stop what runs
}
"""Of CUDA's environment, what isn't the user's choice."""


@contextmanager
def computing(plan: Plan, role: Role, node: int, rank: int = 0) -> Iterator[Backend]:
    """The backend of a node, or of a rank of it, for as long as it serves. Raises NodeDied for
    errors of its GPU, none of which it could survive."""
    gpu = plan.devices.of(role, node, rank)
    with nullcontext() if gpu is None else ends_the_node(str(gpu)):
        yield backend_of(plan, role, node, rank)


def backend_of(plan: Plan, role: Role, node: int, rank: int = 0) -> Backend:
    """The plan's, with a thread on each of the rank's cores; torch is left as many as serve it.

    A process that has a GPU initialises CUDA here, and no earlier.
    """
    attention = role is Role.ATTENTION
    cores = plan.cores_of(role, node, rank)
    kernels = plan.kernels if attention else plan.expert_kernels
    gpu = plan.devices.of(role, node, rank)
    if gpu is not None:
        settle_cuda(os.environ, plan.devices, gpu)
        settle_nccl(os.environ, plan, role)
    torch.set_num_threads(1 if IMPLEMENTATIONS[kernels].own_threads else cores.threads)
    invariant = plan.config.batch_invariant
    return open_backend(kernels, _precision(plan, role), cores.threads, invariant)


def _precision(plan: Plan, role: Role) -> Precision:
    """What the other role computes with is none of its affair, and maybe nothing that it could."""
    if plan.config.colocated:
        return plan.precision
    if role is Role.ATTENTION:
        return replace(plan.precision, experts="auto")
    return replace(plan.precision, attention="auto")


def settle_cuda(environment: MutableMapping[str, str], devices: Devices, own: NumberedGpu) -> None:
    """What CUDA reads when it is initialised: a process sees all GPUs of the instance that its host
    has, since it may reach into each, and its own first, so that every thread that it starts
    computes there."""
    environment.update(CUDA_SETTINGS)
    environment[VISIBLE] = ",".join(gpu.gpu.uuid for gpu in (own, *devices.beside(own)))


def settle_nccl(environment: MutableMapping[str, str], plan: Plan, role: Role) -> None:
    """What NCCL reads when a process makes its first group: ranks of a node meet within their host,
    where nobody else need reach them. A process has one such setting, which is NCCL's own choice
    where groups of M2N lead to other hosts."""
    abroad = plan.places is not None and plan.road.groups == "nccl"
    if plan.ranks(role) > 1 and not abroad:
        environment.setdefault("NCCL_SOCKET_IFNAME", "lo")
