"""What a request changes in its logits before a token is chosen from them.

In this order, which is vLLM's: tokens that a mask or `allowed_token_ids` doesn't allow, bad words
and (before `min_tokens`) the tokens that would end the sequence become -inf; then `logit_bias` is
added; then what the sequence holds already is made less likely:

    repetition    a logit above 0 is divided by it, one below multiplied   prompt and output
    frequency     is subtracted as often as the token was generated        output
    presence      is subtracted once if the token was generated            output

Here is said what is to be done; all rows of a step are edited together (`TokenKernels.edit`).
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from megainfer.attention_node.sampling.allowed_tokens import AllowedTokens
from megainfer.attention_node.sampling.history import TokenHistory
from megainfer.compute.bitmask import Bitmask
from megainfer.compute.edits import RowEdits
from megainfer.messages.requests import Submit


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

    def of_row(self, row: int, vocab_size: int) -> RowEdits:
        """What is to be done with this row of logits."""
        submit, history = self.submit, self.history
        return RowEdits(
            row=row,
            allowed=self._mask(vocab_size),
            added=submit.logit_bias | dict.fromkeys(self.banned(vocab_size), -inf),
            held=history.tokens if history else array("q"),
            generated=history.generated if history else array("f"),
            repetition=submit.repetition_penalty,
            frequency=submit.frequency_penalty,
            presence=submit.presence_penalty,
        )

    def _mask(self, vocab_size: int) -> Bitmask | None:
        if self.listed is None:
            return self.allowed
        listed = self.listed.mask(vocab_size)
        return listed if self.allowed is None else listed & self.allowed


def edits_of_rows(edits: Sequence[LogitEdits | None], vocab_size: int) -> list[RowEdits]:
    """What is to be done with rows of logits, in their order; None leaves a row as it is."""
    return [edit.of_row(row, vocab_size) for row, edit in enumerate(edits) if edit is not None]
