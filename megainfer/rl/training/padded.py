"""Answers of different lengths as one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from megainfer.rl.samples.rows import Row
from megainfer.rl.training.replayed_routing import padded_routing


@dataclass(frozen=True, slots=True)
class Padded:
    """B answers, padded on the right to T tokens.

    token_ids, mask: int64 [B, T]; mask is 0 on padding. rows, columns: int64 [R], the place from
    which each trained token is predicted, that is, the one before it. chosen: int64 [R], these
    tokens. The order is that of the answers, and within one that of its tokens. routing: see
    `padded_routing`.
    """

    token_ids: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    chosen: Tensor
    routing: Tensor | None = None

    @classmethod
    def of(cls, answers: Sequence[Row], device: torch.device) -> Self:
        """On this device."""
        width = max(len(answer.token_ids) for answer in answers)
        token_ids = torch.zeros(len(answers), width, dtype=torch.int64)
        mask = torch.zeros(len(answers), width, dtype=torch.int64)
        for row, answer in enumerate(answers):
            token_ids[row, : len(answer.token_ids)] = torch.tensor(answer.token_ids)
            mask[row, : len(answer.token_ids)] = 1
        places = [(row, t) for row, answer in enumerate(answers) for t in answer.span]
        rows, trained = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).unbind(1)
        tensors = (token_ids, mask, rows, trained - 1, token_ids[rows, trained])
        routing = padded_routing([answer.routing for answer in answers], width)
        own = cls(*(tensor.to(device) for tensor in tensors))
        return own if routing is None else replace(own, routing=routing.to(device))
