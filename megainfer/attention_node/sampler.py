"""From logits to tokens, for a whole batch, each row by its own request's wishes.

Randomness is a pure function of (seed, position): a token sampled again is the same token, and a
row's result does not depend on what else is in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.errors import MegaInferError
from megainfer.kernels import reference as kernels
from megainfer.sampling import ALL_LOGPROBS

Logprobs = dict[int, float]  # token id -> log-probability

Best = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of each row of float32 [S, V] its largest value, NaN where it has one, and where that is, int64
[S], the first place of several."""

_MASK = 2**64 - 1
_SMALLEST = 2.0**-126  # temperature; anything below is 0 in float32


class NonFiniteLogits(MegaInferError):
    """The model gave NaN or infinite logits; `rows` are those at fault."""

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(
            f"the model's logits are not finite in rows {', '.join(map(str, rows))} of the batch: "
            "its weights or its computation overflowed (a wider dtype may help)"
        )
        self.rows = rows


class SampleRow(NamedTuple):
    """What one row wants; the first five fields mean what they do in SamplingParams.

    position: index in its sequence of the token that is being chosen. logprobs: None for none, n
    for the n best and the chosen one, -1 for the whole vocabulary.
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int
    position: int
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """One token and (where asked for) log-probabilities a row, in the order of the rows."""

    token_ids: list[int]
    logprobs: list[Logprobs | None]


@torch.inference_mode()
def sample(
    logits: Tensor, requests: Sequence[SampleRow], best_of: Best = kernels.best
) -> SampleOutput:
    """Choose a token for each row of logits, float32 [S, V]; S may be 0.

    Log-probabilities are those of the logits as they are, before temperature, top_k and top_p.

    Raises NonFiniteLogits, before anything is chosen, naming the rows.
    """
    if not requests:
        return SampleOutput([], [])
    best, greedy = best_of(logits)
    if not bool(best.isfinite().all()):
        raise NonFiniteLogits(tuple((~best.isfinite()).nonzero().flatten().tolist()))
    token_ids = greedy.tolist()
    drawn = [row for row, request in enumerate(requests) if request.temperature > 0]
    if drawn:
        tokens = _draw(logits[drawn], [requests[row] for row in drawn])
        for row, token in zip(drawn, tokens, strict=True):
            token_ids[row] = token
    return SampleOutput(token_ids, _logprobs(logits, requests, token_ids))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1 - 2^-52], the same for the same arguments, else as good as random.

    Both arguments go through the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    return (_mix(_mix(seed & _MASK) + position & _MASK) >> 12) * 2.0**-52


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _draw(logits: Tensor, requests: Sequence[SampleRow]) -> list[int]:
    vocabulary, device = logits.shape[-1], logits.device
    temperature = [max(r.temperature, _SMALLEST) for r in requests]
    top_k = [r.top_k if 0 < r.top_k < vocabulary else vocabulary for r in requests]
    top_p = [r.top_p for r in requests]
    random = [uniform(r.seed, r.position) for r in requests]
    tokens: list[int] = kernels.choose(
        logits,
        torch.tensor(temperature, dtype=torch.float32, device=device),
        torch.tensor(top_k, device=device),
        torch.tensor(top_p, dtype=torch.float64, device=device),
        torch.tensor(random, dtype=torch.float64, device=device),
    ).tolist()
    return tokens


def _logprobs(
    logits: Tensor, requests: Sequence[SampleRow], token_ids: Sequence[int]
) -> list[Logprobs | None]:
    return [
        None if r.logprobs is None else _row_logprobs(logits[row], r.logprobs, token_ids[row])
        for row, r in enumerate(requests)
    ]


def _row_logprobs(logits: Tensor, wanted: int, token_id: int) -> Logprobs:
    """The `wanted` best tokens, best first, then the chosen one if it is not among them."""
    every = torch.log_softmax(logits, dim=-1)
    if wanted == ALL_LOGPROBS:
        return dict(enumerate(every.tolist()))
    values, ids = every.topk(min(wanted, every.shape[-1]))
    best: Logprobs = dict(zip(ids.tolist(), values.tolist(), strict=True))
    return best if token_id in best else {**best, token_id: float(every[token_id])}
