"""What a process of a plan computes with."""

import torch

from megainfer.compute.backend import Backend
from megainfer.compute.selection import IMPLEMENTATIONS, open_backend
from megainfer.launch.plan import Plan
from megainfer.topology import CoreAssignment


def backend_of(plan: Plan, cores: CoreAssignment) -> Backend:
    """The plan's, with a thread on each of these cores; torch is left as many as serve it."""
    own_threads = IMPLEMENTATIONS[plan.kernels].own_threads
    torch.set_num_threads(1 if own_threads else cores.threads)
    return open_backend(plan.kernels, plan.precision, cores.threads)
