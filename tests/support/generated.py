"""What both halves of a model generate, without a process or a scheduler."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.compute.batch import ChunkInput
from tests.support.checkpoints import Greedy
from tests.support.node_pair import Pair, blocks_of

NEW_TOKENS = 10


def generate(pair: Pair, prompts: Sequence[Sequence[int]], chunk: int) -> list[Greedy]:
    """Greedy tokens of all prompts batched: prompts in chunks, mixed with decodes of others."""
    tokens = [list(prompt) for prompt in prompts]
    done = [0] * len(prompts)
    logits: list[list[Tensor]] = [[] for _ in prompts]
    while any(len(rows) < NEW_TOKENS for rows in logits):
        active = [i for i, rows in enumerate(logits) if len(rows) < NEW_TOKENS]
        chunks = [_next_chunk(i, tokens[i], done[i], chunk) for i in active]
        result = iter(pair.step(chunks))
        for i, part in zip(active, chunks, strict=True):
            done[i] = part.context
            if part.samples:
                logits[i].append(next(result))
                tokens[i].append(int(logits[i][-1].argmax()))
    return [
        Greedy(tokens[i][len(prompt) :], [], torch.stack(logits[i]))
        for i, prompt in enumerate(prompts)
    ]


def _next_chunk(sequence: int, tokens: list[int], done: int, chunk: int) -> ChunkInput:
    new = tokens[done : done + chunk]
    return ChunkInput(new, done, blocks_of(sequence), done + len(new) == len(tokens), sequence)


def prompts_of(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(vocabulary, (length,), generator=generator).tolist()
        for length in (1, 5, 16, 17, 40)
    ]
