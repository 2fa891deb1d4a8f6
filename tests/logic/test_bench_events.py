"""Server-sent events and answers, whatever the pieces that they come in."""

import json

import pytest

from megainfer.bench.client import AnswerReader
from megainfer.bench.events import MAX_EVENT_BYTES, Event, EventReader
from megainfer.bench.sample import Outcome
from megainfer.errors import MegaInferError

STREAM = (
    b": ping\n\n"
    b"data: one\n\n"
    b"event: error\r\ndata:two\r\n\r\n"
    b"data: a\rdata: b\r\r"
    b"id: 3\nretry: 10\nwhat: ever\n\n"
    b"data\n\n"
    b"data: \xf0\x9f\x98\x80\r\n\r\n"
    b"data: unfinished\n"
)
EVENTS = [
    Event(b"", b"one"),
    Event(b"error", b"two"),
    Event(b"", b"a\nb"),
    Event(b"", b""),
    Event(b"", "😀".encode()),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_do_not_depend_on_the_pieces(size):
    reader = EventReader()
    pieces = [STREAM[i : i + size] for i in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS


def test_an_endless_event_is_refused():
    reader = EventReader()
    with pytest.raises(MegaInferError, match="more than"):
        reader.feed(b"data: " + b"x" * (MAX_EVENT_BYTES + 1))


def frame(**event: object) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def text(piece: str) -> bytes:
    return frame(choices=[{"index": 0, "text": piece, "finish_reason": None}], usage=None)


def read(*pieces: tuple[bytes, float], chat: bool = False) -> Outcome:
    outcome = Outcome(start=10.0)
    reader = AnswerReader(outcome, chat)
    for piece, now in pieces:
        reader.feed(piece, now)
    reader.end()
    return outcome


def test_times_tokens_and_text_of_a_completion():
    usage = frame(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 3})
    both = text("b") + text("")
    outcome = read((text("a"), 10.5), (both, 11.0), (usage + b"data: [DONE]\n\n", 12.0))
    assert (outcome.ttft, outcome.itl, outcome.latency) == (0.5, [0.5, 0.0], 1.0)
    assert (outcome.text, outcome.prompt_tokens, outcome.output_tokens) == ("ab", 4, 3)


def test_the_opening_of_a_chat_is_no_token_and_reasoning_is():
    def delta(**fields: object) -> bytes:
        return frame(choices=[{"index": 0, "delta": fields, "finish_reason": None}])

    opening = delta(role="assistant", content="")
    outcome = read(
        (opening, 10.1),
        (delta(reasoning_content="hm"), 10.5),
        (delta(content="yes") + b"data: [DONE]\n\n", 11.0),
        chat=True,
    )
    assert (outcome.ttft, outcome.itl, outcome.text) == (0.5, [0.5], "hmyes")


def test_an_error_event_and_a_broken_stream_are_failures():
    with pytest.raises(MegaInferError, match="error event: no more"):
        read((text("a"), 10.5), (frame(error={"message": "no more"}), 11.0))
    with pytest.raises(MegaInferError, match="error event"):
        read((b'event: error\ndata: {"message": "gone"}\n\n', 11.0))
    with pytest.raises(MegaInferError, match="broke off after 1 pieces"):
        read((text("a"), 10.5))
    with pytest.raises(MegaInferError, match="without a token"):
        read((b"data: [DONE]\n\n", 10.5))
    with pytest.raises(MegaInferError, match="instead of an object"):
        read((b"data: [1]\n\n", 10.5))
