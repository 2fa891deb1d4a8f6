"""A step's tokens, in messages that the front end takes."""

from collections.abc import Iterator, Sequence

from megainfer.messages import TokenEvent, TokenLogprobs, Tokens

MAX_LOGPROBS = 2**20
"""In one message, unless one event has more; at 14 bytes each far below the longest message."""


def token_messages(node: int, events: Sequence[TokenEvent]) -> Iterator[Tokens]:
    """These events in their order: one message, or several where they hold many log-probabilities,
    whose number only a single event's limits bound."""
    part: list[TokenEvent] = []
    held = 0
    for event in events:
        size = _logprobs_in(event.logprobs) + _logprobs_in(event.prompt_logprobs)
        if part and held + size > MAX_LOGPROBS:
            yield Tokens(node=node, events=part)
            part, held = [], 0
        part.append(event)
        held += size
    if part:
        yield Tokens(node=node, events=part)


def _logprobs_in(scores: Sequence[TokenLogprobs] | None) -> int:
    return sum(len(score.values) for score in scores) if scores else 0
