"""Plans of what each expert node is sent, as the GPU's kernels make them."""

import torch
from torch import Tensor

from megainfer.compute.gpu.homes import HomeTable
from megainfer.compute.gpu.kernels.routing.gate import Choices
from megainfer.compute.gpu.kernels.routing.plan import plan
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST
from megainfer.m2n.mailbox import Part
from megainfer.topology import Placement


def planned(
    placement: Placement, weights: Tensor, ids: Tensor, ways: Tensor | None = None
) -> tuple[Part, ...]:
    """Of what the gate gives."""
    homes = reference.expert_homes(placement, 0)
    way = torch.zeros(1, 1, dtype=torch.int64) if ways is None else ways[:, None]
    nodes, local_ids = homes.node[ids, way].int(), homes.local_id[ids, way]
    choices = Choices(nodes, local_ids, weights, torch.arange(len(ids)))
    return plan(HOST, choices, HomeTable(placement, 0, HOST))


def drawn(tokens: int, experts: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Weights and ids."""
    return torch.rand(tokens, top_k), torch.rand(tokens, experts).argsort(-1)[:, :top_k]
