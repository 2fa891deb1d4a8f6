"""What a step trains on: answers as rows of tokens with numbers for some of them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """An answer in a policy update.

    token_ids: prompt and answer. span: indices in token_ids of what is trained; old_logprobs and
    advantages have a number for each. correct: its tokens also enter the language-model loss.
    """

    token_ids: Sequence[int]
    span: range
    old_logprobs: Sequence[float]
    advantages: Sequence[float]
    correct: bool = False


@dataclass(frozen=True, slots=True)
class ValueRow:
    """An answer in a value update: `returns` are what V should be, `old_values` what it was when
    the tokens were drawn; a number for each index in `span`."""

    token_ids: Sequence[int]
    span: range
    returns: Sequence[float]
    old_values: Sequence[float]
