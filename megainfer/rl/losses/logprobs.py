"""Log-probabilities of the tokens that came, out of logits."""

import torch
from torch import Tensor


def chosen_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """log p of each row's token, float32 [R]. logits: [R, V], any floating dtype; token_ids: int64
    [R]. Computed in float32 as logit - logsumexp, so that no second [R, V] is kept for it."""
    wide = logits.float()
    chosen = wide.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(wide, dim=-1)
