"""PPO's clipped loss, with other bounds above and below, and the dual clip.

Sources: the clipped surrogate objective is PPO's (Schulman et al., arXiv 1707.06347), formula 7;
other bounds above than below are DAPO's clip-higher (arXiv 2503.14476), formula 8; the dual clip is
Ye et al.'s (arXiv 1912.09729), formula 4; T-PPO (arXiv 2506.15050) takes 0.2, 0.28 and 10.

    r    = exp(log p - log p_old)
    loss = max(-A r, -A clip(r, 1 - low, 1 + high)),    where A < 0 at most -A dual
"""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Beyond, a ratio is above every bound that is allowed (`LossSection`): loss and gradient are the
same, and nothing overflows, which times an advantage of 0 would be NaN."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    low: float = 0.2,
    high: float = 0.28,
    dual: float = 10.0,
) -> Tensor:
    """Each token's loss, float32 [R].

    logprobs: [R] by the policy that is trained, with gradients; old_logprobs, advantages: [R], by
    the one that drew the tokens. low, high: how far the ratio may go below and above 1 to its
    profit. dual: bound of the ratio where the advantage is negative, above 1 + high.
    """
    ratio = (logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual), loss)


def clipped_share(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """The share of tokens that the clip keeps from being trained further, a scalar."""
    above = (advantages > 0) & (ratio > 1 + high)
    below = (advantages < 0) & (ratio < 1 - low)
    return (above | below).float().mean()
