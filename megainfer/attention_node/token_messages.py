"""A step's tokens, in messages that the front end takes."""

from collections.abc import Iterator, Sequence

import msgspec

from megainfer.messages.requests import TokenEvent, TokenLogprobs, Tokens
from megainfer.messages.routed_experts import split

MAX_LOGPROBS = 2**14
"""In one message; to read so many takes the front end 3 ms, in which it hears nobody else."""
ROUTED_BYTES_A_LOGPROB = 2**8
"""What it takes to copy so many bytes, roughly: at most 4 MiB go in one message."""


def token_messages(node: int, events: Sequence[TokenEvent]) -> Iterator[Tokens]:
    """These events: one message, or several where they hold many log-probabilities or choices of
    experts. Those of a prompt may come in several events, of which the last has the token. Whoever
    has few comes first, so that no token waits for what others want to know of theirs."""
    part: list[TokenEvent] = []
    held = 0
    for event in sorted(events, key=_size):
        for piece in _pieces(event):
            size = _size(piece)
            if part and held + size > MAX_LOGPROBS:
                yield Tokens(node=node, events=part)
                part, held = [], 0
            part.append(piece)
            held += size
    if part:
        yield Tokens(node=node, events=part)


def _pieces(event: TokenEvent) -> Iterator[TokenEvent]:
    if event.routed is not None:
        *early, last = split(event.routed, MAX_LOGPROBS * ROUTED_BYTES_A_LOGPROB)
        for piece in early:
            yield TokenEvent(event.request_id, [], routed=piece)
        event = msgspec.structs.replace(event, routed=last)
    scores = event.prompt_logprobs
    if not scores or _logprobs_in(scores) <= MAX_LOGPROBS:
        yield event
        return
    length = max(1, MAX_LOGPROBS // max(len(score.values) for score in scores))
    parts = [scores[start : start + length] for start in range(0, len(scores), length)]
    for part in parts[:-1]:
        yield TokenEvent(event.request_id, [], prompt_logprobs=part)
    yield msgspec.structs.replace(event, prompt_logprobs=parts[-1])


def _size(event: TokenEvent) -> int:
    routed = 0 if event.routed is None else len(event.routed.ids) // ROUTED_BYTES_A_LOGPROB
    return _logprobs_in(event.logprobs) + _logprobs_in(event.prompt_logprobs) + routed


def _logprobs_in(scores: Sequence[TokenLogprobs] | None) -> int:
    return sum(len(score.values) for score in scores) if scores else 0
