"""From logits to tokens, for a whole batch, each row by its own request's wishes.

Randomness is a pure function of (seed, position): a token sampled again is the same token, and a
row's result does not depend on what else is in the batch. A row is edited (see `edits`), divided
by its temperature, cut by min_p, top_k and top_p, and drawn from; one with temperature 0 gives its
best token after the edits.

Sampling is begun and its tokens are taken later: on a device they are found meanwhile.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.attention_node.sampling.draws import Check, Draws
from megainfer.attention_node.sampling.edits import LogitEdits, edits_of_rows
from megainfer.attention_node.sampling.logprobs import PendingLogprobs, begin_logprobs
from megainfer.attention_node.sampling.row_errors import (
    NonFiniteLogits,
    NothingAllowed,
    OverflowedEdits,
)
from megainfer.compute.reference.kernels import kept_probabilities
from megainfer.compute.tokens import DrawWish, TokenKernels
from megainfer.device import Device

_MASK = 2**64 - 1
_SMALLEST = 2.0**-126  # anything below is 0 in float32


class SampleRow(NamedTuple):
    """What one row wants; the first five fields mean what they do in SamplingParams.

    position: index in its sequence of the token that is being chosen. logprobs: None for none, n
    for the n best and the chosen one, -1 for the whole vocabulary; processed: those of the
    distribution that is drawn from, not the model's own. edits: None where the logits are taken as
    they are.
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int
    position: int
    logprobs: int | None = None
    min_p: float = 0.0
    edits: LogitEdits | None = None
    processed: bool = False


@torch.inference_mode()
def begin_sampling(
    logits: Tensor, requests: Sequence[SampleRow], kernels: TokenKernels, device: Device
) -> Draws:
    """Choose a token for each row of logits, float32 [S, V], which stay as they are; S may be 0.

    Log-probabilities are the model's own, those of the logits before any edit, temperature or cut,
    unless a request wants them `processed`.
    """
    best, tokens = kernels.best(logits)
    finite, checks = best.abs() < torch.inf, list[Check]()
    if not (device.is_host and bool(finite.all())):  # where the host can see it, it looks once
        tokens = torch.where(finite, tokens, 0)  # a row with NaN has its best nowhere
        checks.append(Check(range(len(requests)), device.read_back(finite), NonFiniteLogits))
    others = [row for row, r in enumerate(requests) if r.temperature > 0 or r.edits is not None]
    if others:
        rows = device.upload(torch.tensor(others))
        usable = finite.index_select(0, rows)
        given = _harmless(logits.index_select(0, rows), usable, device)
        chosen, edited = _choose(given, [requests[row] for row in others], kernels, device)
        tokens = tokens.index_copy(0, rows, chosen)
        if edited is not None:
            checks += _edit_checks(edited, ~usable, others, device)
    found = device.read_back(tokens)  # first of all that is read: others wait for it
    if processed := [
        row for row, r in enumerate(requests) if r.processed and r.logprobs is not None
    ]:
        logits = logits.index_copy(
            0,
            device.upload(torch.tensor(processed)),
            _processed(logits, finite, processed, requests, kernels, device),
        )
    logprobs = _logprobs(logits, requests, tokens, kernels, device)
    return Draws(found, checks, logprobs, logits.shape[-1])


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


def _choose(
    logits: Tensor, requests: Sequence[SampleRow], kernels: TokenKernels, device: Device
) -> tuple[Tensor, Tensor | None]:
    """Tokens where the best of the raw logits isn't the answer, int64 [R], and the best logits
    after the edits, float32 [R], None without edits; these logits may be changed."""
    if all(r.edits is None for r in requests):
        return kernels.draw(logits, _wishes(requests, logits.shape[-1])), None
    kernels.edit(logits, edits_of_rows([r.edits for r in requests], logits.shape[-1]))
    best, tokens = kernels.best(logits)
    usable = best.abs() < torch.inf
    drawn = [row for row, r in enumerate(requests) if r.temperature > 0]
    if drawn:
        rows = device.upload(torch.tensor(drawn))
        given = _harmless(logits.index_select(0, rows), usable.index_select(0, rows), device)
        wishes = _wishes([requests[row] for row in drawn], logits.shape[-1])
        tokens = tokens.index_copy(0, rows, kernels.draw(given, wishes))
    if device.is_host and bool(usable.all()):
        return tokens, None  # nothing is to be said of any
    return torch.where(usable, tokens, 0), best


def _edit_checks(
    best: Tensor, failed: Tensor, rows: Sequence[int], device: Device
) -> Iterator[Check]:
    """best: as edits left it, float32 [R]. failed: those that have their error, bool [R]."""
    allowed = (best != -torch.inf) | failed
    yield Check(rows, device.read_back(allowed), NothingAllowed)
    in_range = (best < torch.inf) | failed  # NaN isn't
    yield Check(rows, device.read_back(in_range), OverflowedEdits)


def _harmless(logits: Tensor, usable: Tensor, device: Device) -> Tensor:
    """In place: rows that nothing can be drawn from become zeros, which kernels can draw from."""
    if device.is_host and bool(usable.all()):
        return logits  # without going through all of them
    return logits.masked_fill_(~usable[:, None], 0.0)


def _wishes(requests: Sequence[SampleRow], vocabulary: int) -> list[DrawWish]:
    return [
        DrawWish(
            temperature=max(r.temperature, _SMALLEST),
            top_k=r.top_k if 0 < r.top_k < vocabulary else vocabulary,
            top_p=max(r.top_p, _SMALLEST),  # the nucleus has at least one token
            min_p=r.min_p,
            uniform=uniform(r.seed, r.position),
        )
        for r in requests
    ]


def _processed(
    logits: Tensor,
    finite: Tensor,
    chosen: Sequence[int],
    requests: Sequence[SampleRow],
    kernels: TokenKernels,
    device: Device,
) -> Tensor:
    """Logarithms of what the chosen rows are drawn from, float32 [R, V]; of a greedy one edited
    logits."""
    rows = device.upload(torch.tensor(chosen))
    given = _harmless(logits.index_select(0, rows), finite.index_select(0, rows), device)
    wanted = [requests[row] for row in chosen]
    if any(r.edits is not None for r in wanted):
        kernels.edit(given, edits_of_rows([r.edits for r in wanted], logits.shape[-1]))
        best, _ = kernels.best(given)
        given = _harmless(given, best.abs() < torch.inf, device)
    wishes = [
        wish if r.temperature > 0 else DrawWish(1.0, logits.shape[-1], 1.0, 0.0, 0.0)
        for r, wish in zip(wanted, _wishes(wanted, logits.shape[-1]), strict=True)
    ]
    return kept_probabilities(given, wishes, device).log_()


def _logprobs(
    logits: Tensor,
    requests: Sequence[SampleRow],
    tokens: Tensor,
    kernels: TokenKernels,
    device: Device,
) -> PendingLogprobs | None:
    wanted = {row: r.logprobs for row, r in enumerate(requests) if r.logprobs is not None}
    return begin_logprobs(logits, tokens, wanted, kernels, device) if wanted else None
