"""From logits to tokens, for a whole batch, each row by its own request's wishes.

Randomness is a pure function of (seed, position): a token sampled again is the same token, and a
row's result does not depend on what else is in the batch. A row is edited (see `edits`), divided
by its temperature, cut by min_p, top_k and top_p, and drawn from; one with temperature 0 gives its
best token after the edits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.attention_node.sampling.edits import LogitEdits, apply_edits
from megainfer.attention_node.sampling.logprobs import logprobs_of
from megainfer.compute.reference import kernels as reference
from megainfer.compute.tokens import DrawWish, TokenKernels
from megainfer.errors import MegaInferError
from megainfer.messages import TokenLogprobs

_MASK = 2**64 - 1
_SMALLEST = 2.0**-126  # temperature; anything below is 0 in float32


class RowError(MegaInferError):
    """Some rows of a batch, `rows`, can't be sampled from; client_error: they ask for too much."""

    client_error = False

    def __init__(self, message: str, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rows = rows


class NonFiniteLogits(RowError):
    """The model gave NaN or infinite logits; of: what the rows are counted in."""

    def __init__(self, rows: tuple[int, ...], of: str = "batch") -> None:
        super().__init__(
            f"the model's logits are not finite in rows {', '.join(map(str, rows))} of the {of}: "
            "its weights or its computation overflowed (a wider dtype may help)",
            rows,
        )


class NothingAllowed(RowError):
    """A request's own wishes leave it no token."""

    client_error = True

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(
            "no token is left to choose: allowed_token_ids, bad_words, min_tokens or a grammar "
            "forbid every one; allow at least one more",
            rows,
        )


class SampleRow(NamedTuple):
    """What one row wants; the first five fields mean what they do in SamplingParams.

    position: index in its sequence of the token that is being chosen. logprobs: None for none, n
    for the n best and the chosen one, -1 for the whole vocabulary. edits: None where the logits
    are taken as they are.
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int
    position: int
    logprobs: int | None = None
    min_p: float = 0.0
    edits: LogitEdits | None = None


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """One token and (where asked for) log-probabilities a row, in the order of the rows."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


@torch.inference_mode()
def sample(
    logits: Tensor, requests: Sequence[SampleRow], kernels: TokenKernels = reference
) -> SampleOutput:
    """Choose a token for each row of logits, float32 [S, V], which stay as they are; S may be 0.

    Log-probabilities are the model's own: those of the logits before any edit, temperature or cut.

    Raises NonFiniteLogits or NothingAllowed, before anything is chosen, naming the rows.
    """
    if not requests:
        return SampleOutput([], [])
    best, greedy = kernels.best(logits)
    if not bool(best.isfinite().all()):
        raise NonFiniteLogits(_where(~best.isfinite()))
    token_ids = greedy.tolist()
    others = [row for row, r in enumerate(requests) if r.temperature > 0 or r.edits is not None]
    if others:
        try:
            tokens = _choose(logits[others], [requests[row] for row in others], kernels)
        except NothingAllowed as error:
            raise NothingAllowed(tuple(others[i] for i in error.rows)) from None
        for row, token in zip(others, tokens, strict=True):
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


def _choose(logits: Tensor, requests: Sequence[SampleRow], kernels: TokenKernels) -> list[int]:
    """Tokens where the best of the raw logits isn't the answer; these logits may be changed."""
    if all(r.edits is None for r in requests):
        return kernels.draw(logits, _wishes(requests, logits.shape[-1]))
    apply_edits(logits, [r.edits for r in requests])
    best, greedy = kernels.best(logits)
    if bool((best == -torch.inf).any()):
        raise NothingAllowed(_where(best == -torch.inf))
    token_ids: list[int] = greedy.tolist()
    drawn = [row for row, r in enumerate(requests) if r.temperature > 0]
    if drawn:
        wishes = _wishes([requests[row] for row in drawn], logits.shape[-1])
        tokens = kernels.draw(logits[drawn], wishes)
        for row, token in zip(drawn, tokens, strict=True):
            token_ids[row] = token
    return token_ids


def _wishes(requests: Sequence[SampleRow], vocabulary: int) -> list[DrawWish]:
    return [
        DrawWish(
            temperature=max(r.temperature, _SMALLEST),
            top_k=r.top_k if 0 < r.top_k < vocabulary else vocabulary,
            top_p=r.top_p,
            min_p=r.min_p,
            uniform=uniform(r.seed, r.position),
        )
        for r in requests
    ]


def _logprobs(
    logits: Tensor, requests: Sequence[SampleRow], token_ids: Sequence[int]
) -> list[TokenLogprobs | None]:
    """Row by row: where tokens tie, which of them are best must not depend on others' wishes."""
    return [
        None
        if r.logprobs is None
        else logprobs_of(logits[row : row + 1], r.logprobs, token_ids[row : row + 1])[0]
        for row, r in enumerate(requests)
    ]


def _where(rows: Tensor) -> tuple[int, ...]:
    return tuple(rows.nonzero().flatten().tolist())
