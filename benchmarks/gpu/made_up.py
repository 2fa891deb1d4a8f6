"""A whole model on one device whose weights are made up: all experts beside the attention."""

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from megainfer.attention_node.graphs import Bucket
from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.colocated.graphs import GraphedSteps
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.backend import Backend
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.config import BLOCK_SIZE
from megainfer.device import Device
from megainfer.expert_node.experts import ExpertModel
from megainfer.instruments.stage_clock import StageClock
from megainfer.models.spec import ModelSpec
from megainfer.models.stored import Pieces, Source
from megainfer.topology import contiguous_placement

UNBOUNDED = 1 << 62
POOL = 1 << 22  # numbers from which weights on the host are taken


class MadeUpWeights(WeightReader):
    """Weights of any model, as wide as keeps activations in range; no file is read.

    Their numbers follow from their names, rounded to bfloat16, so whoever loads a model gets the
    same one, in whichever order and dtype. What is asked for on the device is made there.
    """

    def __init__(self, device: Device, threads: int = 8) -> None:
        self.device = device
        self.threads = threads
        self._pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))

    def close(self) -> None:
        """There are no files."""

    def load(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """See `WeightReader.load`."""
        made = [self._made(piece) for piece in pieces]
        return torch.cat(made).to(dtype)

    def read(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """See `WeightReader.read`."""
        rows = sum(piece.shape[0] for piece in pieces)
        out = torch.empty((rows, *pieces[0].shape[1:]))
        self.load_into(out, pieces)
        return out.to(dtype)

    def load_into(self, out: Tensor, pieces: Pieces) -> None:
        """See `WeightReader.load_into`; what an expert has comes from a pool of numbers."""
        offset = _seed(pieces[0]) % (POOL // 2)
        scaled = self._pool[offset : offset + POOL // 2] * out.shape[-1] ** -0.5
        flat, scaled = out.view(-1), scaled.to(torch.bfloat16)
        for first in range(0, len(flat), len(scaled)):
            part = flat[first : first + len(scaled)]
            part.copy_(scaled[: len(part)])

    def _made(self, piece: Source) -> Tensor:
        torch.manual_seed(_seed(piece))
        made = torch.empty(piece.shape, device=self.device.torch)
        return made.normal_(std=piece.shape[-1] ** -0.5).to(torch.bfloat16)


def _seed(piece: Source) -> int:
    return crc32(repr(piece).encode())


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
        self.half = attention.half
        clock = StageClock()
        self._clock = clock.of(0)
        self._model = ColocatedModel(attention, experts, self.kv, clock)
        self.backend = backend

    def chunk(self, sequence: int, start: int, tokens: Sequence[int]) -> ChunkInput:
        """These tokens of a sequence, the first at position `start`; their last one is sampled."""
        blocks = [sequence + self._sequences * i for i in range(self._blocks)]
        return ChunkInput(list(tokens), start, blocks, samples=True, state_slot=sequence)

    def recorded(self, buckets: Sequence[Bucket]) -> GraphedSteps:
        """Its decode steps, as the device has recorded them, for all sequences but the last."""
        return GraphedSteps(self._model, self.kv, buckets, UNBOUNDED)

    def step(self, chunks: Sequence[ChunkInput], recorded: GraphedSteps | None = None) -> Tensor:
        """Logits [len(chunks), V]; recorded: by which it is computed where it can be."""
        model = self._model if recorded is None else recorded
        batch = build_batch(chunks, self.backend.device)
        x = model.embed(batch)
        model.advance(x, 0, batch, self.kv, self._clock)
        return model.logits(x, batch.sample_rows)
