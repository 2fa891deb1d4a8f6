"""Prompts for whole instances."""

from collections.abc import Sequence

import torch

VOCABULARY = 160  # of every checkpoint that the tests write
LENGTHS = (1, 3, 9, 16, 17, 25, 33, 40, 48, 60, 72, 90)


def prompts_of(seed: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Mixed lengths; every other one begins as its neighbour does."""
    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = []
    for i, length in enumerate(lengths):
        fresh = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        prompts.append((prompts[-1] + fresh)[:length] if i % 2 else fresh)
    return prompts
