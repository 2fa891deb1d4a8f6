"""What a step trains on: answers as rows of tokens with numbers for some of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from megainfer.messages.routed_experts import RoutedExperts


@dataclass(frozen=True, slots=True)
class Row:
    """token_ids: prompt and answer. span: indices in token_ids of the tokens that matter, none of
    them the first, which nothing predicts. routing: the experts that its first tokens are to
    choose, where the model is told."""

    token_ids: Sequence[int]
    span: range
    routing: RoutedExperts | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class PolicyRow(Row):
    """An answer in a policy update.

    old_logprobs, advantages: a number for each index in `span`. correct: its tokens also enter the
    language-model loss.
    """

    old_logprobs: Sequence[float]
    advantages: Sequence[float]
    correct: bool = False


@dataclass(frozen=True, slots=True)
class ValueRow(Row):
    """An answer in a value update.

    returns: what V should be; old_values: what it was when the tokens were drawn; a number for each
    index in `span`.
    """

    returns: Sequence[float]
    old_values: Sequence[float]
