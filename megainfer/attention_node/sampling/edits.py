"""What a request changes in its logits before a token is chosen from them.

In this order, which is vLLM's: tokens that a mask or `allowed_token_ids` doesn't allow, bad words
and (before `min_tokens`) the tokens that would end the sequence become -inf; then `logit_bias` is
added; then what the sequence holds already is made less likely:

    repetition    a logit above 0 is divided by it, one below multiplied   prompt and output
    frequency     is subtracted as often as the token was generated        output
    presence      is subtracted once if the token was generated            output

All rows of a step are edited together, element by element, so that none depends on the others.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megainfer.attention_node.sampling.allowed_tokens import AllowedTokens
from megainfer.attention_node.sampling.bitmask import Bitmask, words_for
from megainfer.attention_node.sampling.history import TokenHistory
from megainfer.messages import Submit


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """One row's: the request, the tokens of its sequence so far, and their counts if it is to be
    penalised for them. listed: those of `allowed_token_ids`. allowed: by a grammar."""

    submit: Submit
    token_ids: Sequence[int]
    history: TokenHistory | None = None
    listed: AllowedTokens | None = None
    allowed: Bitmask | None = None

    @property
    def outputs(self) -> Sequence[int]:
        return self.token_ids[len(self.submit.prompt) :]

    def banned(self, vocab_size: int) -> Iterator[int]:
        """Tokens that may not come next."""
        if len(self.token_ids) - len(self.submit.prompt) < self.submit.min_tokens:
            # A model's end token may lie outside its vocabulary, where it is never met.
            yield from (token for token in self.submit.stop_token_ids if 0 <= token < vocab_size)
        if self.submit.bad_words:
            outputs = self.outputs
            yield from (word[-1] for word in self.submit.bad_words if _completes(word, outputs))


def apply_edits(logits: Tensor, edits: Sequence[LogitEdits | None]) -> None:
    """Edit logits, float32 [S, V] and contiguous, in place; a row without edits stays as it is."""
    given = [(row, edit) for row, edit in enumerate(edits) if edit is not None]
    for row, edit in given:
        _allow(logits[row], edit)
    _ban(logits, given)
    _bias(logits, given)
    _penalise(logits, given)


Given = Sequence[tuple[int, LogitEdits]]  # and their rows


def _forbid(logits: Tensor, mask: Bitmask) -> None:
    """In place: of one row, float32 [V], what its mask doesn't allow becomes -inf."""
    size = logits.shape[-1]
    assert mask.shape == (words_for(size),), f"a mask of {tuple(mask.shape)} for {size} tokens"
    bits = np.unpackbits(mask.view(np.uint8), count=size, bitorder="little")
    forbidden = torch.from_numpy(bits == 0).to(logits.device)
    logits.masked_fill_(forbidden, -torch.inf)


def _completes(word: Sequence[int], outputs: Sequence[int]) -> bool:
    before = list(word[:-1])
    return not before or list(outputs[-len(before) :]) == before


def _allow(logits: Tensor, edit: LogitEdits) -> None:
    if edit.allowed is not None:
        _forbid(logits, edit.allowed)
    if edit.listed is not None:
        _forbid(logits, edit.listed.mask(logits.shape[-1]))


def _ban(logits: Tensor, given: Given) -> None:
    size = logits.shape[-1]
    banned = array("q", (row * size + token for row, edit in given for token in edit.banned(size)))
    if banned:
        logits.view(-1)[_int64(banned, logits)] = -torch.inf


def _bias(logits: Tensor, given: Given) -> None:
    size = logits.shape[-1]
    places, values = array("q"), array("f")
    for row, edit in given:
        places.extend(row * size + token for token in edit.submit.logit_bias)
        values.extend(edit.submit.logit_bias.values())
    if places:
        logits.view(-1)[_int64(places, logits)] += _float32(values, logits)


def _penalise(logits: Tensor, given: Given) -> None:
    size = logits.shape[-1]
    penalised = [(row, e.submit, e.history) for row, e in given if e.history and e.history.tokens]
    if not penalised:
        return
    places = torch.cat([_int64(h.tokens, logits) + row * size for row, _, h in penalised])
    counts = torch.cat([_float32(h.generated, logits) for _, _, h in penalised])
    lengths = torch.tensor([len(h.tokens) for _, _, h in penalised], device=logits.device)

    def spread(penalties: Iterable[float]) -> Tensor:
        """One number a row, repeated for each of its tokens."""
        return _float32(array("f", penalties), logits).repeat_interleave(lengths)

    values = logits.view(-1)[places]
    repetition = spread(submit.repetition_penalty for _, submit, _ in penalised)
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= spread(submit.frequency_penalty for _, submit, _ in penalised) * counts
    values -= spread(submit.presence_penalty for _, submit, _ in penalised) * (counts > 0)
    logits.view(-1)[places] = values


def _int64(numbers: Sequence[int], like: Tensor) -> Tensor:
    held = numbers if isinstance(numbers, array) else array("q", numbers)
    return torch.frombuffer(held, dtype=torch.int64).to(like.device)


def _float32(numbers: "array[float]", like: Tensor) -> Tensor:
    return torch.frombuffer(numbers, dtype=torch.float32).to(like.device)
