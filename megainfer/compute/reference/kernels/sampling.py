"""Choosing a token from logits, every row by itself: no row's result depends on the others.

Thresholds are values, not ranks, so that tokens that tie are kept or dropped together whatever
order a sort leaves them in.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from megainfer.compute.tokens import DrawWish

# How many of the best tokens to look for a nucleus in, before sorting them all.
NUCLEUS_GUESSES = (1024, 8192)


def best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row of [S, V], and where (int64 [S]), the first of several; NaN where a
    row has one."""
    values, ids = logits.max(-1)
    return values, ids


def draw(logits: Tensor, wishes: Sequence[DrawWish]) -> Tensor:
    """One token id a row of float32 [S, V], int64 [S], as each wishes; see `choose`."""

    def float64(numbers: Iterable[float]) -> Tensor:
        return torch.tensor([*numbers], dtype=torch.float64, device=logits.device)

    return choose(
        logits,
        torch.tensor([w.temperature for w in wishes], dtype=torch.float32, device=logits.device),
        torch.tensor([w.top_k for w in wishes], device=logits.device),
        float64(w.top_p for w in wishes),
        float64(w.uniform for w in wishes),
        float64(w.min_p for w in wishes) if any(w.min_p for w in wishes) else None,
    )


def choose(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    uniform: Tensor,
    min_p: Tensor | None = None,
) -> Tensor:
    """One token id a row by inverting the cumulative distribution: logits [S, V] -> int64 [S].

    temperature: [S], above 0. top_k: int64 [S], 1 to V (V keeps all). top_p: [S], in (0, 1]; the
    smallest set of best tokens whose probabilities reach it is kept, after top_k and renormalised.
    uniform: float64 [S], in [0, 1 - 2^-52]. min_p: float64 [S], in [0, 1]; tokens less likely than
    this share of the likeliest are dropped first (Nguyen et al., 2024). logits must be finite or
    -inf, not all of a row -inf.
    """
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    scaled = logits - logits.amax(-1, keepdim=True)
    _drop_below_top_k(scaled, logits, top_k)
    scaled.div_(temperature[:, None])
    if min_p is not None:
        least = min_p.log().to(scaled.dtype)  # of a logit beside the best, which is 0 now
        scaled.masked_fill_(scaled < least[:, None], -torch.inf)
    probabilities = torch.softmax(scaled, dim=-1)
    _drop_outside_top_p(probabilities, top_p)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).flatten()


def _drop_below_top_k(scaled: Tensor, logits: Tensor, top_k: Tensor) -> None:
    """In place: rows with top_k below V lose those whose logits are under their k-th best."""
    every = (top_k == logits.shape[-1])[:, None]
    if bool(every.all()):
        return
    rank = (top_k[:, None] - 1).masked_fill(every, 0)
    best = logits.topk(int(rank.max()) + 1, dim=-1).values
    threshold = best.gather(-1, rank).masked_fill(every, -torch.inf)
    scaled.masked_fill_(logits < threshold, -torch.inf)


def _drop_outside_top_p(probabilities: Tensor, top_p: Tensor) -> None:
    """In place: rows with top_p below 1 lose all outside the nucleus (Holtzman et al., 2020)."""
    every = (top_p >= 1)[:, None]
    if bool(every.all()):
        return
    best, cumulative = _best_until(probabilities, top_p.masked_fill(every[:, 0], 0.0))
    # The nucleus ends with the first token at which the sum reaches top_p.
    last = (cumulative < top_p[:, None]).sum(-1, keepdim=True).clamp(max=best.shape[-1] - 1)
    threshold = best.gather(-1, last).masked_fill(every, 0.0)
    probabilities.masked_fill_(probabilities < threshold, 0.0)


def _best_until(probabilities: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probabilities, descending, and their running sums, until those reach `mass`."""
    vocabulary = probabilities.shape[-1]
    for width in (guess for guess in NUCLEUS_GUESSES if guess < vocabulary):
        best = probabilities.topk(width, dim=-1).values
        cumulative = best.cumsum(-1, dtype=torch.float64)
        if bool((cumulative[:, -1] >= mass).all()):
            return best, cumulative
    best = probabilities.sort(-1, descending=True).values
    return best, best.cumsum(-1, dtype=torch.float64)
