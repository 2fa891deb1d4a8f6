"""A whole model on one device whose weights are made up: all experts beside the attention."""

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.backend import Backend
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.config import BLOCK_SIZE
from megainfer.device import Device
from megainfer.expert_node.experts import ExpertModel
from megainfer.instruments.stage_clock import StageClock
from megainfer.models.spec import ModelSpec
from megainfer.models.stored import Pieces
from megainfer.topology import contiguous_placement

POOL = 1 << 22  # numbers from which weights on the host are taken, at one offset after the other
STRIDE = 1009  # of these offsets


class MadeUpWeights(WeightReader):
    """Weights of any model, as wide as keeps activations in range; no file is read.

    What is asked for on the device is made there. What is asked for on the host, an expert at a
    time, comes from a pool of numbers.
    """

    def __init__(self, device: Device, threads: int = 8) -> None:
        self.device = device
        self.threads = threads
        self._pool = torch.randn(POOL)
        self._offsets = count()

    def close(self) -> None:
        """There are no files."""

    def load(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """See `WeightReader.load`."""
        made = self.device.empty(_shape(pieces), dtype)
        return made.normal_(std=made.shape[-1] ** -0.5)

    def load_into(self, out: Tensor, pieces: Pieces) -> None:
        """See `WeightReader.load_into`."""
        offset = next(self._offsets) * STRIDE % (POOL // 2)
        scaled = self._pool[offset : offset + POOL // 2] * out.shape[-1] ** -0.5
        flat = out.view(-1)
        for first in range(0, len(flat), len(scaled)):
            part = flat[first : first + len(scaled)]
            part.copy_(scaled[: len(part)])


def _shape(pieces: Pieces) -> tuple[int, ...]:
    return (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])


class MadeUpModel:
    """A model that computes steps of `sequences` sequences, each with room for `context` tokens.

    holders: 1, or over how many nodes experts are dealt, of which this process has those of the
    first only; what others hold is taken for absent, and all kernels are launched as ever.

    Sequence i owns blocks i, i + sequences, i + 2 * sequences, ...
    """

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        reader: WeightReader,
        sequences: int,
        context: int,
        holders: int = 1,
    ) -> None:
        everything, held = (
            contiguous_placement(spec.num_experts, nodes, spec.moe_layers) for nodes in (1, holders)
        )
        attention = AttentionModel(spec, reader, everything, backend, max_positions=context)
        experts = ExpertModel(spec, reader, held, 0, backend)
        self._blocks = -(-context // BLOCK_SIZE)
        self._sequences = sequences
        self.kv = attention.new_cache(sequences * self._blocks, sequences)
        clock = StageClock()
        self._clock = clock.of(0)
        self._model = ColocatedModel(attention, experts, self.kv, clock)
        self.backend = backend

    def chunk(self, sequence: int, start: int, tokens: Sequence[int]) -> ChunkInput:
        """These tokens of a sequence, the first at position `start`; their last one is sampled."""
        blocks = [sequence + self._sequences * i for i in range(self._blocks)]
        return ChunkInput(list(tokens), start, blocks, samples=True, state_slot=sequence)

    def step(self, chunks: Sequence[ChunkInput]) -> Tensor:
        """Logits [len(chunks), V]."""
        batch = build_batch(chunks, self.backend.device)
        x = self._model.embed(batch)
        self._model.advance(x, 0, batch, self.kv, self._clock)
        return self._model.logits(x, batch.sample_rows)
