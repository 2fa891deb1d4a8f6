"""Choosing the positions that a query attends to (DeepSeek-V3.2's sparse attention)."""

import torch
from torch import Tensor


def choose_positions(
    q: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, top_k: int
) -> Tensor:
    """Of the visible positions the `top_k` best, all where there are no more: bool [S, T, L].

    q: [S, T, h, d]. weights: [S, T, h]. keys: [S, L, d]. visible: bool [S, T, L]. A position's
    score is the sum over heads of weight * relu(q . k), in float32; what would multiply all of a
    query's scores alike is left out. Of positions that tie, as those do whose heads all give 0, the
    first are chosen.
    """
    if visible.shape[-1] <= top_k:
        return visible
    products = torch.einsum("sthd,sld->sthl", q.to(torch.float32), keys.to(torch.float32))
    scores = torch.einsum("sth,sthl->stl", weights.to(torch.float32), products.relu())
    scores = scores.masked_fill(~visible, -torch.inf)
    least = scores.topk(top_k, dim=-1).values[..., -1:]
    above, tied = scores > least, scores == least
    left = top_k - above.sum(-1, keepdim=True)
    return (above | tied & (tied.cumsum(-1) <= left)) & visible
