"""How a step's rows are cut into updates and forward passes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import torch

from megainfer.rl.ranks.ranks import ALONE, Ranks
from megainfer.rl.samples.rows import Row
from megainfer.rl.training.micro_batches import micro_batches

R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Passes:
    """How rows are computed.

    mini_batches: updates a step, each with its share of the rows. most_tokens: of a forward pass,
    padding included. dtype: what is computed in; weights and updates are float32. seed: of the
    order in which rows are shared out. ranks: who computes them together.
    """

    mini_batches: int = 1
    most_tokens: int = 16384
    dtype: torch.dtype = torch.float32
    seed: int = 0
    ranks: Ranks = ALONE

    def split(self, rows: Sequence[R], number: int) -> Iterator[list[R]]:
        """The rows of each update; none is empty. Rows come with the answers to one problem side by
        side, the oldest first, so several updates get them in an order that seed and number decide:
        each is of all problems.

        number: another one for each step, the same again where a run is resumed.
        """
        shared = list(rows)
        if self.mini_batches > 1:
            Random(f"{self.seed}, {number}").shuffle(shared)
        size = math.ceil(len(shared) / self.mini_batches)
        for start in range(0, len(shared), max(size, 1)):
            yield shared[start : start + size]

    def passes(self, rows: Sequence[Row]) -> list[tuple[list[int], int]]:
        """Which rows go into each of this rank's forward passes, and with which weight: see
        `Ranks.deal`."""
        lengths = [len(row.token_ids) for row in rows]
        return self.ranks.deal(micro_batches(lengths, self.most_tokens))

    def computing(self, device: torch.device) -> AbstractContextManager[object]:
        """bfloat16 is autocast's: sums and norms stay float32."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)
