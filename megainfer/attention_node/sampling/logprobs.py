"""Log-probabilities as they go to the front end."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from megainfer.compute.tokens import Scores, TokenKernels
from megainfer.device import Device
from megainfer.messages.requests import TokenLogprobs
from megainfer.sampling import ALL_LOGPROBS


class PendingLogprobs:
    """Those of some rows, on their way. wanted: by row, how many of the best tokens."""

    def __init__(self, scores: Scores, wanted: Mapping[int, int], device: Device) -> None:
        self._wanted = wanted
        self._parts = [device.read_back(part) for part in scores]

    def done(self) -> bool:
        """Whether `take` would return at once."""
        return all(part.done() for part in self._parts)

    def take(self, tokens: Sequence[int]) -> dict[int, TokenLogprobs]:
        """By row. tokens: the own one of each row that there is."""
        ids, values, own, ranks = (part.take().tolist() for part in self._parts)
        best = zip(ids, values, strict=True)
        return {
            row: TokenLogprobs({**_possible(islice(best, number)), tokens[row]: value}, rank)
            for (row, number), value, rank in zip(self._wanted.items(), own, ranks, strict=True)
        }


def _possible(best: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Without tokens that can't be drawn."""
    return {token: value for token, value in best if value > -math.inf}


@torch.inference_mode()
def begin_logprobs(
    logits: Tensor,
    tokens: Tensor,
    wanted: Mapping[int, int],
    kernels: TokenKernels,
    device: Device,
) -> PendingLogprobs:
    """Those of rows of logits, float32 [S, V], and of the token of each, tokens: int64 [S].

    wanted: for these rows, ascending, how many of the best; ALL_LOGPROBS for the whole vocabulary.
    """
    size = logits.shape[-1]
    numbers = {row: size if n == ALL_LOGPROBS else min(n, size) for row, n in wanted.items()}
    scores = kernels.scores(logits, tokens, list(numbers), list(numbers.values()))
    return PendingLogprobs(scores, numbers, device)
