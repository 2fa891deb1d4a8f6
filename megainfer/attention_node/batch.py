"""One step of one micro-batch as tensors: whose tokens stand where, and what they attend to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from megainfer.config import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class ChunkInput:
    """What one sequence does in a step: its tokens [start, start + len(token_ids)).

    block_ids: the sequence's blocks, at least as many as its context then needs. samples: the
    logits of the chunk's last token are wanted.
    """

    token_ids: list[int]
    start: int
    block_ids: list[int]
    samples: bool

    @property
    def context(self) -> int:
        """Tokens of the sequence up to the end of this chunk."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Decodes:
    """The sequences that have one token in the step: rows 0 to S - 1.

    block_table: int64 [S, blocks], padded with each sequence's own first block, so that nobody's
    values reach another sequence even multiplied by zero. mask: bool [S, 1, 1, L], true where
    position l exists; L is the longest context.
    """

    block_table: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Prefill:
    """A sequence with several tokens in the step: rows `start` to `stop` - 1.

    blocks: int64 [blocks], where its context of `context` tokens lies, the last block maybe partly.
    """

    start: int
    stop: int
    blocks: Tensor
    context: int


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A step's T tokens, those of the decodes first, then each prefill's in turn.

    token_ids, positions, slots: int64 [T]; a slot is block * block_size + offset. sample_rows:
    int64 [S], the rows whose logits are wanted, in the order of the chunks that want them.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    decodes: Decodes | None
    prefills: tuple[Prefill, ...]
    sample_rows: Tensor

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]


def build_batch(chunks: Sequence[ChunkInput], block_size: int = BLOCK_SIZE) -> StepBatch:
    """The tensors of a step that computes these chunks, one or more, none of them empty.

    A prompt's chunks may not share a step: a sequence stands in it once.
    """
    order = sorted(range(len(chunks)), key=lambda i: len(chunks[i].token_ids) > 1)
    ordered = [chunks[i] for i in order]
    singles = [chunk for chunk in ordered if len(chunk.token_ids) == 1]
    positions = [range(chunk.start, chunk.context) for chunk in ordered]
    slots = [_slots(chunk, block_size) for chunk in ordered]
    return StepBatch(
        token_ids=torch.tensor([t for chunk in ordered for t in chunk.token_ids]),
        positions=torch.tensor(list(chain.from_iterable(positions))),
        slots=torch.tensor(list(chain.from_iterable(slots))),
        decodes=_decodes(singles, block_size) if singles else None,
        prefills=_prefills(ordered[len(singles) :], len(singles), block_size),
        sample_rows=_sample_rows(chunks, order),
    )


def _slots(chunk: ChunkInput, block_size: int) -> list[int]:
    blocks = chunk.block_ids
    return [
        blocks[position // block_size] * block_size + position % block_size
        for position in range(chunk.start, chunk.context)
    ]


def _decodes(chunks: Sequence[ChunkInput], block_size: int) -> Decodes:
    contexts = [chunk.context for chunk in chunks]
    width = -(-max(contexts) // block_size)
    table = []
    for chunk, context in zip(chunks, contexts, strict=True):
        used = chunk.block_ids[: -(-context // block_size)]
        table.append(used + used[:1] * (width - len(used)))
    exists = torch.arange(max(contexts)) < torch.tensor(contexts)[:, None]
    return Decodes(torch.tensor(table), exists[:, None, None])


def _prefills(chunks: Sequence[ChunkInput], first_row: int, block_size: int) -> tuple[Prefill, ...]:
    prefills, row = [], first_row
    for chunk in chunks:
        blocks = torch.tensor(chunk.block_ids[: -(-chunk.context // block_size)])
        stop = row + len(chunk.token_ids)
        prefills.append(Prefill(row, stop, blocks, chunk.context))
        row = stop
    return tuple(prefills)


def _sample_rows(chunks: Sequence[ChunkInput], order: Sequence[int]) -> Tensor:
    """The last row of each chunk that samples; `order` is how the chunks follow in the step."""
    last_row, row = {}, 0
    for i in order:
        row += len(chunks[i].token_ids)
        last_row[i] = row - 1
    rows = [last_row[i] for i, chunk in enumerate(chunks) if chunk.samples]
    return torch.tensor(rows, dtype=torch.int64)
