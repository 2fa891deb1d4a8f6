"""Log-probabilities on their way to the front end: no message is longer than it takes."""

import msgspec
import pytest

from megainfer.attention_node import token_messages as module
from megainfer.attention_node.token_messages import token_messages
from megainfer.errors import RequestError
from megainfer.frontend.node_socket import MAX_MESSAGE_BYTES
from megainfer.frontend.request_limits import MAX_PROMPT_SCORES, RequestLimits
from megainfer.messages.message import encode
from megainfer.messages.requests import FinishReason, TokenEvent, TokenLogprobs
from megainfer.sampling import SamplingParams

BEST = 20


def scores(positions: int) -> list[TokenLogprobs]:
    """Of tokens and ranks that take the most bytes."""
    values = {2**31 + token: -1.5 for token in range(BEST + 1)}
    return [TokenLogprobs(values, 2**31)] * positions


def test_events_are_split_where_they_hold_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever has few of them comes first, in a message of its own if the next has many."""
    monkeypatch.setattr(module, "MAX_LOGPROBS", 3 * (BEST + 1))
    events = [
        TokenEvent("a", [1], prompt_logprobs=scores(2)),
        TokenEvent("b", [1], logprobs=scores(1)),
        TokenEvent("c", [1]),
        TokenEvent("d", [1], logprobs=scores(1)),
        TokenEvent("e", [1], prompt_logprobs=scores(2), logprobs=scores(1)),
        TokenEvent("f", [1]),
    ]
    messages = list(token_messages(3, events))
    told = [[event.request_id for event in message.events] for message in messages]
    assert told == [["c", "f", "b", "d"], ["a"], ["e"]]
    by_name = {event.request_id: event for message in messages for event in message.events}
    assert [by_name[event.request_id] for event in events] == events
    assert {message.node for message in messages} == {3}


def test_without_them_there_is_one_message() -> None:
    events = [TokenEvent("a", [1]) for _ in range(1000)]
    assert [message.events for message in token_messages(0, events)] == [events]


def test_the_longest_prompt_that_is_taken_comes_in_short_messages() -> None:
    length = MAX_PROMPT_SCORES // (BEST + 1)
    limits = RequestLimits(max_model_len=2 * length, vocab_size=10)
    params = SamplingParams(prompt_logprobs=BEST)
    limits.max_tokens([1] * length, params)
    with pytest.raises(RequestError, match=f"prompt of {length + 1} tokens are .* send a shorter"):
        limits.max_tokens([1] * (length + 1), params)
    event = TokenEvent("a" * 64, [1], FinishReason.LENGTH, 5, scores(1), scores(length))
    messages = list(token_messages(0, [event]))
    assert max(len(encode(message)) for message in messages) < 2 * 2**20 < MAX_MESSAGE_BYTES
    *parts, last = [e for message in messages for e in message.events]
    assert all((e.token_ids, e.finish_reason, e.logprobs) == ([], None, None) for e in parts)
    joined = [score for e in (*parts, last) for score in e.prompt_logprobs or ()]
    assert len(parts) > 20
    assert msgspec.structs.replace(last, prompt_logprobs=joined) == event
