"""A step as numbers: what the other ranks need to know of it.

[S, then of each sequence: tokens, start, state slot, blocks, and these; then all tokens]: sequences
in the order of their rows.
"""

from itertools import chain

import torch
from torch import Tensor

from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.config import BLOCK_SIZE
from megainfer.device import HOST, Device

HEADER = 4


def step_numbers(batch: StepBatch) -> Tensor:
    """int64 [N]."""
    numbers = [len(batch.chunks)]
    for chunk in batch.chunks:
        blocks = chunk.block_ids[: -(-chunk.context // BLOCK_SIZE)]
        numbers += [len(chunk.token_ids), chunk.start, chunk.state_slot, len(blocks), *blocks]
    numbers += chain.from_iterable(chunk.token_ids for chunk in batch.chunks)
    return torch.tensor(numbers, dtype=torch.int64)


def read_step(written: Tensor, device: Device = HOST) -> StepBatch:
    """The same rows, for who computes on that device; of whose logits are wanted nothing is
    known."""
    heads = list[list[int]]()
    at = 1
    for _ in range(int(written[0])):
        head = written[at : at + HEADER].tolist()
        at += HEADER
        heads.append([*head, *written[at : at + head[3]].tolist()])
        at += head[3]
    chunks = []
    for tokens, start, slot, _, *blocks in heads:
        chunks.append(ChunkInput(written[at : at + tokens].tolist(), start, blocks, False, slot))
        at += tokens
    return build_batch(chunks, device)
