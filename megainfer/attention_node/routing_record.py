"""Which experts each token in the KV cache chose, for trainers whose model is to choose the same.

"Rollout routing replay": https://arxiv.org/abs/2510.11370
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.config import BLOCK_SIZE
from megainfer.m2n.mailbox import Part
from megainfer.messages.routed_experts import RoutedExperts
from megainfer.models.spec import ModelSpec
from megainfer.topology import EMPTY, Placement


class RoutingRecord:
    """Kept by the place of a token's keys and values, so that a cached prefix brings its own along
    and nothing is to be done for who is preempted or ends.

    num_blocks: of the KV cache. What is kept is int16 [num_blocks, BLOCK_SIZE, layers with experts,
    top_k], `memory.routing_bytes` a token, on the host; -1: no expert.
    """

    def __init__(self, spec: ModelSpec, placement: Placement, num_blocks: int) -> None:
        self._index = {layer: index for index, layer in enumerate(spec.moe_layers)}
        shape = (num_blocks, BLOCK_SIZE, len(self._index), spec.top_k)
        # From numpy: a page takes memory once it is written to; see `compute.kv_cache`.
        self._blocks = torch.from_numpy(np.zeros(shape, np.int16))
        self._tokens = self._blocks.view(-1, *shape[2:])
        self._globals: Mapping[int, list[Tensor]] = {}
        self.place(placement)

    def place(self, placement: Placement) -> None:
        """From the next step on local ids are those of this placement."""
        # One slot more, last, which is where the local id -1 points.
        tables = [
            [torch.tensor([*slots, EMPTY], dtype=torch.int16) for slots in table.experts]
            for table in placement.tables
        ]
        self._globals = {layer: tables[table] for layer, table in placement.layers.items()}

    def keep(self, layer: int, batch: StepBatch, parts: Sequence[Part]) -> None:
        """What the step's tokens chose in this layer; parts: as `Routed` has them."""
        places, index = batch.kept_at, self._index[layer]
        chosen = torch.full((batch.num_tokens, self._tokens.shape[-1]), -1, dtype=torch.int16)
        for part, experts in zip(parts, self._globals[layer], strict=True):
            found = experts[part.local_ids.long()]
            # Each choice is at one node; at the others its column holds -1.
            chosen[part.rows] = torch.maximum(chosen[part.rows], found)
        self._tokens[places, index] = chosen

    def of(self, block_ids: Sequence[int], start: int, stop: int) -> RoutedExperts:
        """What the tokens [start, stop) of a sequence with these blocks chose."""
        first = start // BLOCK_SIZE
        blocks = self._blocks[list(block_ids[first : -(-stop // BLOCK_SIZE)])]
        skipped = first * BLOCK_SIZE
        tokens = blocks.flatten(0, 1)[start - skipped : stop - skipped].contiguous()
        layers, top_k = tokens.shape[1:]
        return RoutedExperts(start, layers, top_k, tokens.numpy().tobytes())
