"""One step of one micro-batch as tensors: whose tokens stand where, and what they attend to."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.compute.contexts import Decodes, Prefill, SequenceRows, Span
from megainfer.compute.ways import ways_of
from megainfer.config import BLOCK_SIZE
from megainfer.device import HOST, Device


class ChunkInput(NamedTuple):
    """What one sequence does in a step: its tokens [start, start + len(token_ids)).

    block_ids: the sequence's blocks, at least as many as its context then needs. samples: the
    logits of the chunk's last token are wanted. state_slot: where its recurrent state lies, of
    no meaning in a model without.
    """

    token_ids: list[int]
    start: int
    block_ids: list[int]
    samples: bool
    state_slot: int = 0

    @property
    def context(self) -> int:
        """Tokens of the sequence up to the end of this chunk."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True)
class StepBatch:
    """A step's T tokens, those of the decodes first, then each prefill's in turn.

    On the device: token_ids, positions: int64 [T]. kept_at: int64 [T], where each token's keys and
    values lie in the cache, block * block_size + offset.
    row_starts: int64 [S + 1]; sequence s has the rows row_starts[s] to row_starts[s + 1] - 1.
    block_table: int64 [S, blocks], each sequence's blocks, padded with its own first one.
    state_slots: int64 [S], where each one's recurrent state lies. sample_rows: int64, the rows
    whose logits are wanted, in the order of the chunks that want them.

    count: int32 [1], how many of the rows count, where no host knows it: the others are padding.
    None: all do.

    On the host, so that nobody asks the device: chunks, in the order of their rows. first_rows:
    where each chunk begins, in the order in which the chunks were given.
    """

    token_ids: Tensor
    positions: Tensor
    kept_at: Tensor
    row_starts: Tensor
    block_table: Tensor
    state_slots: Tensor
    block_size: int
    sample_rows: Tensor
    chunks: Sequence[ChunkInput]
    first_rows: list[int]
    count: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @cached_property
    def decodes(self) -> Decodes | None:
        """The sequences with a single row, if there are any."""
        contexts = [chunk.context for chunk in self.chunks if len(chunk.token_ids) == 1]
        if not contexts:
            return None
        singles, longest = len(contexts), max(contexts)
        table = self.block_table[:singles, : -(-longest // self.block_size)]
        positions = torch.arange(longest, device=self.positions.device)
        exists = positions <= self.positions[:singles, None]
        return Decodes(table, exists[:, None, None])

    @cached_property
    def prefills(self) -> tuple[Prefill, ...]:
        """The sequences with several rows."""
        return tuple(
            Prefill(
                rows.start,
                rows.stop,
                blocks[: -(-chunk.context // self.block_size)],
                chunk.context,
            )
            for rows, blocks, chunk in zip(
                self.sequences, self.block_table, self.chunks, strict=True
            )
            if rows.stop - rows.start > 1
        )

    @cached_property
    def sequences(self) -> tuple[SequenceRows, ...]:
        """All sequences, in the order of their rows."""
        stops = accumulate(len(chunk.token_ids) for chunk in self.chunks)
        return tuple(
            SequenceRows(stop - len(chunk.token_ids), stop, chunk.start, chunk.state_slot)
            for chunk, stop in zip(self.chunks, stops, strict=True)
        )

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The sequences with a single row, then those with several, if there are any."""
        singles = sum(len(chunk.token_ids) == 1 for chunk in self.chunks)
        parts = (slice(0, singles), slice(singles, len(self.chunks)))
        return tuple(self._span(part) for part in parts if part.start < part.stop)

    def _span(self, part: slice) -> Span:
        chunks, rows = self.chunks[part], self.sequences[part]
        return Span(
            self.row_starts[part.start : part.stop + 1],
            self.block_table[part],
            self.state_slots[part],
            slice(rows[0].start, rows[-1].stop),
            max(len(chunk.token_ids) for chunk in chunks),
            max(chunk.context for chunk in chunks),
        )

    @cached_property
    def ways(self) -> Tensor:
        """int64 [T], by which the tokens of an expert are shared out; see `compute.ways`."""
        return ways_of(self.token_ids, self.positions)

    @cached_property
    def first_positions(self) -> Tensor:
        """int64 [S], of each sequence's first row."""
        return self.positions[self.row_starts[:-1]]


def build_batch(
    chunks: Sequence[ChunkInput], device: Device = HOST, block_size: int = BLOCK_SIZE
) -> StepBatch:
    """The tensors of a step that computes these chunks, one or more, none of them empty.

    A prompt's chunks may not share a step: a sequence stands in it once.
    """
    order = sorted(range(len(chunks)), key=lambda i: len(chunks[i].token_ids) > 1)
    ordered = [chunks[i] for i in order]
    first_rows = _first_rows(chunks, order)
    positions = list[int]()
    kept = list[int]()
    for chunk in ordered:
        _place(chunk, block_size, positions, kept)
    lists = (
        [t for chunk in ordered for t in chunk.token_ids],
        positions,
        kept,
        [0, *accumulate(len(chunk.token_ids) for chunk in ordered)],
        _block_table(ordered, block_size),
        [chunk.state_slot for chunk in ordered],
        _sample_rows(chunks, first_rows),
    )
    token_ids, places, kept_at, row_starts, table, state_slots, rows = _tensors(lists, device)
    return StepBatch(
        token_ids=token_ids,
        positions=places,
        kept_at=kept_at,
        row_starts=row_starts,
        block_table=table.view(len(ordered), -1),
        state_slots=state_slots,
        block_size=block_size,
        sample_rows=rows,
        chunks=ordered,
        first_rows=first_rows,
    )


def _tensors(lists: Sequence[list[int]], device: Device) -> Sequence[Tensor]:
    """int64, each one of the lists; to a device they go together."""
    if device.is_host:
        return [_int64(numbers) for numbers in lists]
    joined = device.upload(_int64([*chain.from_iterable(lists)]))
    return joined.split_with_sizes([len(numbers) for numbers in lists])


def _place(chunk: ChunkInput, block_size: int, positions: list[int], kept: list[int]) -> None:
    """Append the positions of the chunk's tokens, and where their keys and values are kept."""
    blocks = chunk.block_ids
    for position in range(chunk.start, chunk.context):
        positions.append(position)
        kept.append(blocks[position // block_size] * block_size + position % block_size)


def _int64(numbers: list[int]) -> Tensor:
    """In a fraction of the time that torch.tensor takes for it."""
    if not numbers:
        return torch.empty(0, dtype=torch.int64)
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


def _block_table(chunks: Sequence[ChunkInput], block_size: int) -> list[int]:
    """Row by row, all as long as the longest."""
    used = [chunk.block_ids[: -(-chunk.context // block_size)] for chunk in chunks]
    width = max(map(len, used))
    table = list[int]()
    for blocks in used:
        table += blocks
        table += blocks[:1] * (width - len(blocks))
    return table


def _first_rows(chunks: Sequence[ChunkInput], order: Sequence[int]) -> list[int]:
    """Where each chunk begins; `order` is how the chunks follow in the step."""
    first, row = [0] * len(chunks), 0
    for i in order:
        first[i] = row
        row += len(chunks[i].token_ids)
    return first


def _sample_rows(chunks: Sequence[ChunkInput], first_rows: Sequence[int]) -> list[int]:
    """The last row of each chunk that samples."""
    pairs = zip(chunks, first_rows, strict=True)
    return [first + len(chunk.token_ids) - 1 for chunk, first in pairs if chunk.samples]
