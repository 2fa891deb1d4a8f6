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
from megainfer.device import HOST, Device
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

    def banned(self, vocab_size: int) -> Iterator[int]:
        """Tokens that may not come next."""
        if len(self.token_ids) - len(self.submit.prompt) < self.submit.min_tokens:
            # A model's end token may lie outside its vocabulary, where it is never met.
            yield from (token for token in self.submit.stop_token_ids if 0 <= token < vocab_size)
        for word in self.submit.bad_words:
            if self._would_complete(word):
                yield word[-1]

    def _would_complete(self, word: Sequence[int]) -> bool:
        """Seldom, and then it is seen from the last token before it."""
        before = len(word) - 1
        if not before:
            return True
        tokens, start = self.token_ids, len(self.token_ids) - before
        if start < len(self.submit.prompt) or tokens[-1] != word[-2]:
            return False
        return list(tokens[start:]) == list(word[:-1])


def apply_edits(logits: Tensor, edits: Sequence[LogitEdits | None], device: Device = HOST) -> None:
    """Edit logits, float32 [S, V] and contiguous, in place; a row without edits stays as it is.

    What requests hold is read now; device: where the logits are.
    """
    given = [(row, edit) for row, edit in enumerate(edits) if edit is not None]
    for row, edit in given:
        _allow(logits[row], edit, device)
    _ban(logits, given, device)
    _bias(logits, given, device)
    _penalise(logits, given, device)


Given = Sequence[tuple[int, LogitEdits]]  # and their rows


def _forbid(logits: Tensor, mask: Bitmask, device: Device) -> None:
    """In place: of one row, float32 [V], what its mask doesn't allow becomes -inf."""
    size = logits.shape[-1]
    assert mask.shape == (words_for(size),), f"a mask of {tuple(mask.shape)} for {size} tokens"
    bits = np.unpackbits(mask.view(np.uint8), count=size, bitorder="little")
    logits.masked_fill_(device.upload(torch.from_numpy(bits == 0)), -torch.inf)


def _allow(logits: Tensor, edit: LogitEdits, device: Device) -> None:
    if edit.allowed is not None:
        _forbid(logits, edit.allowed, device)
    if edit.listed is not None:
        _forbid(logits, edit.listed.mask(logits.shape[-1]), device)


def _ban(logits: Tensor, given: Given, device: Device) -> None:
    size = logits.shape[-1]
    banned = array("q", (row * size + token for row, edit in given for token in edit.banned(size)))
    if banned:
        logits.view(-1)[device.upload(_int64(banned))] = -torch.inf


def _bias(logits: Tensor, given: Given, device: Device) -> None:
    size = logits.shape[-1]
    places, values = array("q"), array("f")
    for row, edit in given:
        places.extend(row * size + token for token in edit.submit.logit_bias)
        values.extend(edit.submit.logit_bias.values())
    if places:
        logits.view(-1)[device.upload(_int64(places))] += device.upload(_float32(values))


def _penalise(logits: Tensor, given: Given, device: Device) -> None:
    size = logits.shape[-1]
    penalised = [(row, e.submit, e.history) for row, e in given if e.history and e.history.tokens]
    if not penalised:
        return
    # Copies, since histories grow while a device may still have to read what it was given.
    places = torch.cat([_int64(h.tokens) + row * size for row, _, h in penalised])
    counts = device.upload(torch.cat([_float32(h.generated) for _, _, h in penalised]))
    lengths = torch.tensor([len(h.tokens) for _, _, h in penalised])

    def spread(penalties: Iterable[float]) -> Tensor:
        """One number a row, repeated for each of its tokens."""
        return device.upload(_float32(array("f", penalties)).repeat_interleave(lengths))

    places = device.upload(places)
    values = logits.view(-1)[places]
    repetition = spread(submit.repetition_penalty for _, submit, _ in penalised)
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= spread(submit.frequency_penalty for _, submit, _ in penalised) * counts
    values -= spread(submit.presence_penalty for _, submit, _ in penalised) * (counts > 0)
    logits.view(-1)[places] = values


def _int64(numbers: "array[int]") -> Tensor:
    return torch.frombuffer(numbers, dtype=torch.int64)


def _float32(numbers: "array[float]") -> Tensor:
    return torch.frombuffer(numbers, dtype=torch.float32)
