"""What an answer holds beside its text."""

from dataclasses import dataclass
from enum import Enum


class Usage(Enum):
    """Where a stream tells the counts of tokens."""

    NONE = "none"
    LAST = "last"  # in an event of its own before the stream's end
    CONTINUOUS = "continuous"  # and in every event, as they are then


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """logprobs: how many of the best beside each token's own; None for none. prompt_logprobs: of
    the prompt, in a field of their own. token_ids: of prompt and answer. tokens_as_ids: where a
    token is shown as text, show its id. echo: the prompt comes before the answer, its
    log-probabilities too; echo_only: and nothing after it.
    """

    usage: Usage = Usage.NONE
    logprobs: int | None = None
    prompt_logprobs: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    echo_only: bool = False
