"""An attention model and its expert models in the test's own process, without ports."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megainfer.attention_node.model import AttentionModel, MoEPoint
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.backend import Backend
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.selection import Precision, open_backend
from megainfer.config import BLOCK_SIZE
from megainfer.expert_node.experts import ExpertModel
from megainfer.instruments.stage_clock import StageClock
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.registry import load_spec
from megainfer.topology import Placement, contiguous_placement

CLOCK = StageClock().of(0)
BLOCKS_A_SEQUENCE = 8
SEQUENCES = 8


FLOAT32 = Precision()


class Pair:
    """An attention model and its expert models, with a KV cache for SEQUENCES sequences.

    Sequence i owns blocks i, i + 8, i + 16, ...: neighbours in a sequence are never neighbours in
    memory.
    """

    def __init__(self, attention: AttentionModel, experts: Sequence[ExpertModel]) -> None:
        self.attention = attention
        self.experts = experts
        self.kv = attention.new_cache(SEQUENCES * BLOCKS_A_SEQUENCE, SEQUENCES)

    def step(self, chunks: Sequence[ChunkInput]) -> Tensor:
        """Run chunks through all layers; logits of those that sample."""
        batch = build_batch(chunks, self.kv.device)
        return self.attention.logits(self._run(batch), batch.sample_rows)

    def all_logits(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits [T, V] of each sequence's every position, float32; sequences of two or more."""
        chunks = [
            ChunkInput(list(tokens), 0, blocks_of(i), samples=False, state_slot=i)
            for i, tokens in enumerate(sequences)
        ]
        x = self._run(build_batch(chunks, self.kv.device))
        logits = self.attention.logits(x, torch.arange(len(x)))
        return list(logits.split([len(tokens) for tokens in sequences]))

    def last_logits(self, tokens: Sequence[int], count: int, chunk: int = 256) -> Tensor:
        """Logits [count, V] of one long sequence's last positions, computed in chunks; it has a
        cache of its own."""
        blocks = list(range(-(-len(tokens) // BLOCK_SIZE)))
        self.kv = self.attention.new_cache(len(blocks), 1)
        before, found = len(tokens) - count, list[Tensor]()
        for start in [*range(0, before, chunk), *range(before, len(tokens), chunk)]:
            end = min(start + chunk, before if start < before else len(tokens))
            part = ChunkInput(list(tokens[start:end]), start, blocks, samples=False)
            x = self._run(build_batch([part], self.kv.device))
            if start >= before:
                found.append(self.attention.logits(x, torch.arange(len(x))))
        return torch.cat(found)

    def _run(self, batch: StepBatch) -> Tensor:
        """The step's residual stream after all layers."""
        x = self.attention.embed(batch)
        point = self.attention.advance(x, 0, batch, self.kv, CLOCK)
        while point is not None:
            self._add_experts(x, point)
            point = self.attention.advance(x, point.layer + 1, batch, self.kv, CLOCK)
        return x

    def _add_experts(self, x: Tensor, point: MoEPoint) -> None:
        shared = self.attention.shared(point.layer, point.hidden)
        if shared is not None:
            x += shared
        for node, part in enumerate(point.parts):
            x.index_add_(0, part.rows, self.computed(node, point).to(x.dtype))

    def computed(self, node: int, point: MoEPoint) -> Tensor:
        """What an expert node gives back for its part."""
        part = point.parts[node]
        hidden = point.hidden[part.rows]
        # Two dispatches, as if from two attention nodes; either may be empty.
        half = len(hidden) // 2
        messages = [
            Dispatch(i, 0, point.layer, 0, hidden[rows], part.local_ids[rows], part.weights[rows])
            for i, rows in enumerate((slice(None, half), slice(half, None)))
        ]
        out = torch.full_like(hidden, torch.nan)  # a reply slot holds whatever was there
        self.experts[node].forward(point.layer, messages, [out[:half], out[half:]])
        return out


def load_pair(
    folder: Path,
    num_nodes: int,
    precision: Precision = FLOAT32,
    kernels: str = "auto",
    believed: Placement | None = None,
) -> Pair:
    """A checkpoint's pair, its experts dealt over so many nodes.

    believed: where the attention side thinks that experts live, if not where they do.
    """
    backend = open_backend(kernels, precision)
    return open_pair(folder, num_nodes, backend, believed)


def open_pair(
    folder: Path, num_nodes: int, backend: Backend, believed: Placement | None = None
) -> Pair:
    """`load_pair` with this backend."""
    spec = load_spec(folder)
    placement = contiguous_placement(spec.num_experts, num_nodes, spec.moe_layers)
    with WeightReader(folder, device=backend.device) as reader:
        attention = AttentionModel(spec, reader, believed or placement, backend)
        experts = [ExpertModel(spec, reader, placement, node, backend) for node in range(num_nodes)]
    return Pair(attention, experts)


def blocks_of(sequence: int) -> list[int]:
    """The blocks of a pair's cache that a sequence owns."""
    return [sequence + SEQUENCES * i for i in range(BLOCKS_A_SEQUENCE)]
