"""Whole nodes on the GPU's kernels, interpreted, on the host: for tests/interpreted/ alone, whose
conftest.py turns Triton's interpreter on."""

from collections.abc import Sequence

import torch

from megainfer.compute.backend import Backend
from megainfer.compute.gpu.backend import GpuBackend
from tests.support.fake_groups import PretendGpu
from tests.support.local_cluster import VOCABULARY, LocalCluster
from tests.support.ranks import RankedCluster, RankForks
from tests.support.twin_cluster import TwinCluster

SECONDS = 110.0
"""To drain one in, less than a test may take: the interpreter needs long."""


class GpuCluster(LocalCluster):
    """Over the `local` road."""

    def _backend(self) -> Backend:
        return GpuBackend(torch.float32, torch.float32)


class GpuTwinCluster(TwinCluster):
    """Over the road between GPUs, whose payloads kernels fill and whose replies they add.

    invariant: see `GpuBackend`.
    """

    invariant = False

    def _backend(self) -> Backend:
        return GpuBackend(torch.float32, torch.float32, invariant=self.invariant)


class GpuRankedCluster(RankedCluster, GpuTwinCluster):
    """The same with ranks that are processes, whose rows go by collectives: gloo's, for NCCL's."""

    apart = RankForks

    def _backend(self) -> Backend:
        return GpuBackend(torch.float32, torch.float32, PretendGpu(), invariant=self.invariant)


class InvariantCluster(GpuTwinCluster):
    invariant = True


def short_prompts(seed: int, lengths: Sequence[int] = (3, 14)) -> list[list[int]]:
    """Random tokens, which every checkpoint of the tests has."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths
    ]
