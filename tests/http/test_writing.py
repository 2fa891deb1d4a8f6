"""Long answers are written in parts, by turns of clients, and others are heard in between."""

import asyncio
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import msgspec

from megainfer.frontend.text_stream import TextDelta
from megainfer.messages.requests import FinishReason, TokenLogprobs
from megainfer.text.token_text import TokenTexts
from server.http.client import current_client
from server.http.writing import CHUNK_BYTES, JsonChunks, Writing
from server.openai.answer_options import AnswerOptions
from server.openai.choice import PART_POSITIONS, Choice
from server.openai.logprobs import CompletionLogprobs, Scores, prompt_logprobs
from server.openai.prompts import Prompt
from tests.support.engine_talk import run

NUMBERS = TokenTexts(None)


def parts(client: str, count: int, log: list[str]) -> Iterator[bytes]:
    for _ in range(count):
        log.append(client)
        yield b"x"


def test_a_short_answer_does_not_wait_for_a_long_one() -> None:
    """Part after part is the turn of whoever has had fewer: by counts, and not by time."""

    async def check() -> None:
        writing, log = Writing(), list[str]()

        async def answer(client: str, count: int) -> None:
            current_client.set(client)
            await writing.write(parts(client, count, log))

        hostile = [asyncio.create_task(answer("hostile", 1000)) for _ in range(5)]
        while log.count("hostile") < 20:
            await asyncio.sleep(0)
        before = len(log)
        await asyncio.create_task(answer("honest", 10))
        assert log[before:].count("honest") == 10
        assert log[before:].count("hostile") <= 10 + 2
        await asyncio.gather(*hostile)
        assert log.count("hostile") == 5000

    run(check())


def test_everybody_is_heard_between_any_two_parts() -> None:
    async def check() -> None:
        writing, log = Writing(), list[str]()

        async def listen() -> None:
            while True:
                log.append("heard")
                await asyncio.sleep(0)

        listening = asyncio.create_task(listen())
        await asyncio.gather(*(writing.write(parts("part", 50, log)) for _ in range(3)))
        listening.cancel()
        assert log.count("part") == 150
        assert "part part" not in " ".join(log)

    run(check())


def test_who_leaves_while_its_answer_is_written_holds_up_nobody() -> None:
    async def check() -> None:
        writing, log = Writing(), list[str]()
        leaving = [asyncio.create_task(writing.write(parts("a", 1000, log))) for _ in range(2)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert await writing.write([b"abc", b"", b"d"]) == [b"abcd"]
        assert log.count("a") < 10

    run(check())


def test_what_was_written_is_sent_as_it_is() -> None:
    async def check() -> None:
        sent: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        async def receive() -> MutableMapping[str, Any]:
            raise AssertionError("nobody asks")

        written = [bytes([65 + i]) * 1000 for i in range(20)] * 10
        chunks = await Writing().write(written)
        assert len(chunks) > 1
        assert all(len(chunk) >= CHUNK_BYTES for chunk in chunks[:-1])
        await JsonChunks(chunks)({"type": "http"}, receive, send)
        start, *bodies = sent
        headers = dict(start["headers"])
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"content-length"] == b"200000"
        assert b"".join(body["body"] for body in bodies) == b"".join(written)
        assert [body["more_body"] for body in bodies] == [True] * len(chunks) + [False]

    run(check())


# --- parts ---------------------------------------------------------------------------------------


class CountingWriter(CompletionLogprobs):
    """positions: of each call."""

    def __init__(self, options: AnswerOptions) -> None:
        super().__init__(NUMBERS, options)
        self.positions: list[int] = []

    def write(self, tokens: Sequence[int], scores: Scores) -> dict[str, Any]:
        self.positions.append(len(tokens))
        return super().write(tokens, scores)


def test_a_choices_log_probabilities_are_made_a_bounded_number_at_a_time() -> None:
    count = 3 * PART_POSITIONS + 5
    options = AnswerOptions(logprobs=2, echo=True)
    writer = CountingWriter(options)
    choice = Choice(0, Prompt(list(range(count + 1))), True, options, writer)
    scores = [TokenLogprobs({token + 1: -0.5, 7: -1.0}, 1) for token in range(count)]
    tokens = list(range(1, count + 1))
    choice.collect(
        TextDelta("r", "", tokens, FinishReason.LENGTH, logprobs=scores, prompt_logprobs=scores)
    )
    making, done = choice.whole(), [0]
    while True:
        before = len(writer.positions)
        try:
            assert next(making) == b""
        except StopIteration as end:
            piece = end.value
            break
        done.append(sum(writer.positions[before:]))
    assert max(done) == PART_POSITIONS
    whole = CompletionLogprobs(NUMBERS, options)
    expected = whole.write(list(range(count + 1)), [None, *scores])
    whole.move_to(0)
    after = whole.write(tokens, scores)
    assert piece.logprobs == {name: entries + after[name] for name, entries in expected.items()}


def test_a_prompts_log_probabilities_are_the_same_however_many_a_part_holds() -> None:
    scores = [TokenLogprobs({token: -0.5, 7: float("-inf")}, 3) for token in range(10, 21)]
    at_once, *rest = [list(prompt_logprobs(scores, NUMBERS, size)) for size in (100, 1, 4)]
    assert [len(pieces) for pieces in rest] == [11 + 2, 3 + 2]
    documents = [msgspec.json.decode(b"".join(pieces)) for pieces in (at_once, *rest)]
    assert documents == [documents[0]] * 3
    first, second, *_ = documents[0]
    assert first is None
    assert second == {
        "10": {"logprob": -0.5, "rank": 1, "decoded_token": "token_id:10"},
        "7": {"logprob": -9999.0, "rank": 3, "decoded_token": "token_id:7"},
    }
