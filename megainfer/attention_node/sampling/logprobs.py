"""Log-probabilities of the model's own distribution, as they go to the front end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.messages import TokenLogprobs
from megainfer.sampling import ALL_LOGPROBS


class PendingLogprobs:
    """Those of each row of logits, float32 [R, V]: of its `wanted` best tokens and one of its own.

    wanted: ALL_LOGPROBS gives the whole vocabulary. tokens: the own one of each row, int64 [R].
    """

    @torch.inference_mode()
    def __init__(self, logits: Tensor, wanted: int, tokens: Tensor, device: Device) -> None:
        every = torch.log_softmax(logits, dim=-1)
        size = every.shape[-1]
        values, ids = every.topk(size if wanted == ALL_LOGPROBS else min(wanted, size))
        own = every.gather(-1, tokens[:, None].clamp(0, size - 1))  # whoever drew may have erred
        ranks = (every > own).sum(-1) + 1
        self._parts = [device.read_back(part) for part in (ids, values, own.flatten(), ranks)]

    def done(self) -> bool:
        """Whether `take` would return at once."""
        return all(part.done() for part in self._parts)

    def take(self, tokens: Sequence[int]) -> list[TokenLogprobs]:
        """One a row; `tokens` as above."""
        parts = (part.take().tolist() for part in self._parts)
        return [
            TokenLogprobs({**dict(zip(best, numbers, strict=True)), token: value}, rank)
            for token, best, numbers, value, rank in zip(tokens, *parts, strict=True)
        ]
