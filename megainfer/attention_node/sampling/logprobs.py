"""Log-probabilities of the model's own distribution, as they go to the front end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.messages import TokenLogprobs
from megainfer.sampling import ALL_LOGPROBS


def logprobs_of(logits: Tensor, wanted: int, tokens: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of logits, float32 [R, V], its `wanted` best tokens and one of its own.

    wanted: ALL_LOGPROBS gives the whole vocabulary. tokens: the own one of each row.
    """
    every = torch.log_softmax(logits, dim=-1)
    size = every.shape[-1]
    values, ids = every.topk(size if wanted == ALL_LOGPROBS else min(wanted, size))
    own = every.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])
    ranks = (every > own).sum(-1) + 1
    rows = zip(
        tokens, ids.tolist(), values.tolist(), own.flatten().tolist(), ranks.tolist(), strict=True
    )
    return [
        TokenLogprobs({**dict(zip(best, numbers, strict=True)), token: value}, rank)
        for token, best, numbers, value, rank in rows
    ]
