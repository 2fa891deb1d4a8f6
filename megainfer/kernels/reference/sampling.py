"""Choosing a token from logits, every row by itself: no row's result depends on the others.

Thresholds are values, not ranks, so that tokens that tie are kept or dropped together whatever
order a sort leaves them in.
"""

import torch
from torch import Tensor

# Enough of the best tokens to hold the nucleus of most distributions; the rest is sorted if not.
NUCLEUS_GUESS = 1024


def choose(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """One token id a row by inverting the cumulative distribution: logits [S, V] -> int64 [S].

    temperature: [S], above 0. top_k: int64 [S], 1 to V (V keeps all). top_p: [S], in (0, 1]; the
    smallest set of best tokens whose probabilities reach it is kept, after top_k and renormalised.
    uniform: float64 [S], in [0, 1 - 2^-52]. logits must be finite or -inf.
    """
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    centred = logits - logits.amax(-1, keepdim=True)
    scaled = _keep_top_k(centred, top_k) / temperature[:, None]
    probabilities = _keep_top_p(torch.softmax(scaled, dim=-1), top_p)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).flatten()


def _keep_top_k(logits: Tensor, top_k: Tensor) -> Tensor:
    """Rows with top_k below V lose the logits under their k-th best."""
    vocabulary = logits.shape[-1]
    kept = top_k.masked_fill(top_k == vocabulary, 1)  # the widest that needs a threshold
    width = int(kept.max())
    best = logits.topk(width, dim=-1).values
    threshold = best.gather(-1, (kept - 1)[:, None])
    threshold = threshold.masked_fill((top_k == vocabulary)[:, None], -torch.inf)
    return logits.masked_fill(logits < threshold, -torch.inf)


def _keep_top_p(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Rows with top_p below 1 lose the tokens outside of the nucleus (Holtzman et al., 2020)."""
    if bool((top_p >= 1).all()):
        return probabilities
    best, cumulative = _best_until(probabilities, top_p)
    # The nucleus ends with the first token at which the sum reaches top_p.
    last = (cumulative < top_p[:, None]).sum(-1, keepdim=True).clamp(max=best.shape[-1] - 1)
    threshold = best.gather(-1, last).masked_fill((top_p >= 1)[:, None], 0.0)
    return probabilities.masked_fill(probabilities < threshold, 0.0)


def _best_until(probabilities: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probabilities in descending order, and their running sums, as far as needed."""
    vocabulary = probabilities.shape[-1]
    best = probabilities.topk(min(NUCLEUS_GUESS, vocabulary), dim=-1).values
    cumulative = best.cumsum(-1, dtype=torch.float64)
    reached = (cumulative[:, -1] >= top_p) | (top_p >= 1)
    if bool(reached.all()) or best.shape[-1] == vocabulary:
        return best, cumulative
    best = probabilities.sort(-1, descending=True).values
    return best, best.cumsum(-1, dtype=torch.float64)
