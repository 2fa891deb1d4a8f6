"""Choosing a token from logits, every row by itself: no row's result depends on the others.

Thresholds are values, not ranks, so that tokens that tie are kept or dropped together whatever
order a sort leaves them in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.compute.tokens import DrawWish
from megainfer.device import HOST, Device

# How many of the best tokens to look for a nucleus in, before sorting them all.
NUCLEUS_GUESSES = (1024, 8192)


def best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row of [S, V], and where (int64 [S]), the first of several; NaN where a
    row has one."""
    values, ids = logits.max(-1)
    return values, ids


def draw(logits: Tensor, wishes: Sequence[DrawWish], device: Device = HOST) -> Tensor:
    """One token id a row, as each wishes, by inverting the cumulative distribution: float32 [S, V]
    -> int64 [S]. See `TokenKernels.draw`; device: where the logits are."""
    cumulative = kept_probabilities(logits, wishes, device).cumsum(-1, dtype=torch.float64)
    target = _column([w.uniform for w in wishes], torch.float64, device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).flatten()


def kept_probabilities(logits: Tensor, wishes: Sequence[DrawWish], device: Device = HOST) -> Tensor:
    """Of each token, after temperature and cuts, float32 [S, V]; what was cut by top_p isn't made
    up for, so a row may add up to less than 1."""
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    scaled = logits - logits.amax(-1, keepdim=True)
    _drop_below_top_k(scaled, logits, [w.top_k for w in wishes], device)
    scaled.div_(_column([w.temperature for w in wishes], torch.float32, device))
    if any(w.min_p for w in wishes):
        min_p = _column([w.min_p for w in wishes], torch.float64, device)
        least = min_p.log().to(scaled.dtype)  # of a logit beside the best, which is 0 now
        scaled.masked_fill_(scaled < least, -torch.inf)
    probabilities = torch.softmax(scaled, dim=-1)
    _drop_outside_top_p(probabilities, [w.top_p for w in wishes], device)
    return probabilities


def _column(numbers: Sequence[float], dtype: torch.dtype, device: Device) -> Tensor:
    """[S, 1], one number a row."""
    return device.upload(torch.tensor(numbers, dtype=dtype)[:, None])


def _drop_below_top_k(scaled: Tensor, logits: Tensor, top_k: Sequence[int], device: Device) -> None:
    """In place: rows with top_k below V lose those whose logits are under their k-th best."""
    size = logits.shape[-1]
    cut = [k for k in top_k if k < size]
    if not cut:
        return
    every = _column([k == size for k in top_k], torch.bool, device)
    rank = _column([0 if k == size else k - 1 for k in top_k], torch.int64, device)
    best = logits.topk(max(cut), dim=-1).values
    threshold = best.gather(-1, rank).masked_fill(every, -torch.inf)
    scaled.masked_fill_(logits < threshold, -torch.inf)


def _drop_outside_top_p(probabilities: Tensor, top_p: Sequence[float], device: Device) -> None:
    """In place: rows with top_p below 1 lose all outside the nucleus (Holtzman et al., 2020)."""
    if all(p >= 1 for p in top_p):
        return
    every = _column([p >= 1 for p in top_p], torch.bool, device)
    wanted = _column(top_p, torch.float64, device)
    best, cumulative = _best_until(probabilities, wanted.masked_fill(every, 0.0)[:, 0], device)
    # The nucleus ends with the first token at which the sum reaches top_p.
    last = (cumulative < wanted).sum(-1, keepdim=True).clamp(max=best.shape[-1] - 1)
    threshold = best.gather(-1, last).masked_fill(every, 0.0)
    probabilities.masked_fill_(probabilities < threshold, 0.0)


def _best_until(probabilities: Tensor, mass: Tensor, device: Device) -> tuple[Tensor, Tensor]:
    """The largest probabilities, descending, and their running sums, until those reach `mass`."""
    vocabulary = probabilities.shape[-1]
    guesses = NUCLEUS_GUESSES if device.is_host else ()  # a device isn't asked how it went
    for width in (guess for guess in guesses if guess < vocabulary):
        best = probabilities.topk(width, dim=-1).values
        cumulative = best.cumsum(-1, dtype=torch.float64)
        if bool((cumulative[:, -1] >= mass).all()):
            return best, cumulative
    best = probabilities.sort(-1, descending=True).values
    return best, best.cumsum(-1, dtype=torch.float64)
