"""Log-probabilities of rows of logits."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megainfer.compute.tokens import Scores


def scores(logits: Tensor, tokens: Tensor, rows: Sequence[int], wanted: Sequence[int]) -> Scores:
    """See `TokenKernels.scores`: of logits, float32 [S, V], and tokens, int64 [S]."""
    parts = [
        _scores(logits[run.start : run.stop], tokens[run.start : run.stop], number)
        for run, number in _runs(rows, wanted)
    ]
    return Scores(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _scores(logits: Tensor, tokens: Tensor, number: int) -> Scores:
    every = torch.log_softmax(logits, dim=-1)
    ids = logits.topk(number).indices  # rounding may make logarithms equal that weren't
    own = tokens[:, None].clamp(0, logits.shape[-1] - 1)
    ranks = (logits > logits.gather(-1, own)).sum(-1) + 1
    return Scores(
        ids.flatten(), every.gather(-1, ids).flatten(), every.gather(-1, own).flatten(), ranks
    )


def _runs(rows: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[range, int]]:
    """Rows that follow each other and want as many are taken together: where tokens tie, those
    that `topk` finds depend on how many it is asked for."""
    start = 0
    for end in range(1, len(rows) + 1):
        goes_on = end < len(rows) and rows[end] == rows[end - 1] + 1
        if not goes_on or wanted[end] != wanted[start]:
            yield range(rows[start], rows[end - 1] + 1), wanted[start]
            start = end
