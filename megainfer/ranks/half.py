"""What the ranks of an attention node share of a step: the rows, and what each makes of them."""

from enum import IntEnum

import torch
from torch import Tensor

from megainfer.ranks.layout import HalfLayout
from megainfer.ranks.shared import Shared


class Work(IntEnum):
    """What an order of rank 0 is about: (work, layer, rows, step's place)."""

    STEP = 0  # read what it is, and keep it at its place
    EMBED = 1
    ATTEND = 2
    DENSE = 3
    SHARED = 4
    LOGITS = 5


class SharedHalf:
    """As tensors. step: int64 [step_numbers]. rows: float32 [rows, D]; token_ids: int64 [rows], in
    the same place."""

    def __init__(self, shared: Shared[HalfLayout]) -> None:
        layout = shared.layout
        self._shared = shared
        self._shape = layout.rows, layout.hidden_size
        self.step = shared.tensor(layout.step, (layout.step_numbers,), torch.int64)
        self.rows = shared.tensor(layout.rows_at, self._shape, torch.float32)
        self.token_ids = shared.tensor(layout.rows_at, (layout.rows,), torch.int64)

    def result(self, rank: int) -> Tensor:
        """float32 [rows, D]."""
        return self._shared.tensor(self._shared.layout.result(rank), self._shape, torch.float32)

    def logits(self, rank: int, vocabulary: int) -> Tensor:
        """float32 [logit_rows, vocabulary], in the same place; vocabulary: how many are its own."""
        layout = self._shared.layout
        shape = layout.logit_rows, vocabulary
        return self._shared.tensor(layout.result(rank), shape, torch.float32)
