"""One request's answer, as it is built from deltas: whole, or as a stream of events."""

import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from megainfer.frontend.sequence_request import SequenceRequest
from megainfer.frontend.text_stream import TextDelta, TextStream
from megainfer.sharing.pauses import Pauses
from megainfer.text.token_text import TokenTexts
from server.http.connection import CLIENT_CLOSED_REQUEST, ClientGone, EventStream, while_connected
from server.http.errors import log_failure, report_of
from server.http.writing import JsonChunks, Writing
from server.openai.answer_options import AnswerOptions, Usage
from server.openai.choice import PART_POSITIONS, Choice
from server.openai.logprobs import prompt_logprobs
from server.openai.one_line import encode, encode_line
from server.openai.piece import Piece
from server.openai.prompts import Prompt
from server.openai.shapes import Shape

END = b"}\n\n"
DONE = b"data: [DONE]\n\n"
STATUS_SECONDS = 0.1
"""For so long a stream's headers wait for its first token: what fails sooner has a status."""
MOST_LOGPROBS = 21
"""Of a token."""
INLINE_SIZE = 4096
"""Tokens and log-probabilities; to write more of them takes several milliseconds."""


class Answer:
    """Collects deltas. `sequences`: the n of the first prompt, then those of the next, ..."""

    def __init__(
        self,
        shape: Shape,
        head: dict[str, str],
        prompts: Sequence[Prompt],
        sequences: Sequence[SequenceRequest],
        options: AnswerOptions,
        texts: TokenTexts,
    ) -> None:
        """head: the answer's id, and the model's name."""
        n = len(sequences) // len(prompts)
        self._shape = shape
        self._options = options
        self._texts = texts
        self._choices = {
            sequence.request_id: Choice(
                index,
                prompts[index // n],
                index % n == 0,
                options,
                shape.logprobs_writer(texts, options),
                shape.reader(prompts[index // n]),
            )
            for index, sequence in enumerate(sequences)
        }
        self._head = {**head, "created": int(time.time())}
        self._before = b"data: " + encode_line({**self._head, "object": shape.part})[:-1]
        self._prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self._completion_tokens = 0
        self._cached_tokens = 0

    def add(self, delta: TextDelta) -> Choice:
        """Count a delta; the choice to which it belongs."""
        choice = self._choices[delta.request_id]
        if not self._options.echo_only:
            self._completion_tokens += len(delta.token_ids)
        if choice.first_of_prompt:
            self._cached_tokens += delta.cached_tokens
        return choice

    def collect(self, delta: TextDelta) -> None:
        """Add a delta to the whole answer."""
        self.add(delta).collect(delta)

    def piece(self, delta: TextDelta) -> Piece:
        """Count a delta; what it adds to its choice."""
        return _at_once(self.add(delta).making(delta))

    def whole_piece(self) -> Generator[bytes, None, Piece]:
        """The one choice that there is, of all that was collected; see `Choice.making`."""
        (choice,) = self._choices.values()
        return (yield from choice.whole())

    def whole(self) -> Iterator[bytes]:
        """The complete answer as JSON, in parts, some of them empty: each is a bounded amount of
        work."""
        yield encode({**self._head, "object": self._shape.whole})[:-1] + b',"choices":['
        for place, choice in enumerate(self._choices.values()):
            piece = yield from choice.whole()
            yield b"," * bool(place) + encode(self._shape.choice(piece))[:-1]
            if self._shape.prompt_in_choice:
                yield from self._about_prompt(choice)
            yield b"}"
        yield b"]"
        if not self._shape.prompt_in_choice:
            yield from self._about_prompt(next(iter(self._choices.values())))
        yield b',"usage":' + encode(self.usage()) + b"}"

    def events(self, delta: TextDelta) -> Iterator[bytes]:
        """What a stream tells of this delta, in parts as `whole`."""
        choice = self.add(delta)
        about = {} if choice.opened else self._ids_of_prompt(choice)
        opening = None if choice.opened else self._shape.opening(choice.index)
        part = self._shape.chunk((yield from choice.making(delta)))
        if self._shape.prompt_in_choice:
            part, about = {**part, **about}, {}
        if opening is not None:
            yield self._event(opening, about)
        yield self._event(part, {} if opening is not None else about)

    @property
    def size(self) -> int:
        """How much there is to write of it so far: tokens, and log-probabilities."""
        each = 1 + (self._options.logprobs or 0)
        prompts = self._prompt_tokens if self._options.prompt_logprobs or self._options.echo else 0
        return each * self._completion_tokens + MOST_LOGPROBS * prompts

    def usage_event(self) -> bytes:
        """The stream's last event but one: no choices, only the counts."""
        return self._before + b',"choices":[],"usage":' + encode(self.usage()) + END

    def usage(self) -> dict[str, Any]:
        """Tokens so far; each prompt counts once, whatever n is. Where the model may think, it is
        told how many tokens of pieces made so far are reasoning."""
        usage: dict[str, Any] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }
        thoughts = [choice.reasoning_tokens for choice in self._choices.values()]
        if known := [count for count in thoughts if count is not None]:
            usage["completion_tokens_details"] = {"reasoning_tokens": sum(known)}
        return usage

    def _about_prompt(self, choice: Choice) -> Iterator[bytes]:
        """Further fields of a whole answer, in parts."""
        if ids := self._ids_of_prompt(choice):
            yield b"," + encode(ids)[1:-1]
        if self._options.prompt_logprobs and choice.prompt_scores is not None:
            yield b',"prompt_logprobs":'
            yield from prompt_logprobs(choice.prompt_scores, self._texts, PART_POSITIONS)

    def _ids_of_prompt(self, choice: Choice) -> dict[str, Any]:
        return {"prompt_token_ids": choice.prompt.ids} if self._options.token_ids else {}

    def _event(self, choice: dict[str, Any], about: dict[str, Any]) -> bytes:
        more = b"," + encode_line(about)[1:-1] if about else b""
        return b"".join(
            (self._before, more, b',"choices":[', encode_line(choice), b"]", self._usage(), END)
        )

    def _usage(self) -> bytes:
        if self._options.usage is Usage.NONE:
            return b""
        counts = self.usage() if self._options.usage is Usage.CONTINUOUS else None
        return b',"usage":' + encode(counts)


def _at_once(making: Generator[bytes, None, Piece]) -> Piece:
    while True:
        try:
            next(making)
        except StopIteration as end:
            piece: Piece = end.value
            return piece


async def respond(request: Request, deltas: TextStream, answer: Answer) -> Response:
    """Answer when all is there."""
    return await respond_with(request, deltas, answer, answer.whole)


async def respond_with(
    request: Request, deltas: TextStream, answer: Answer, whole: Callable[[], Iterator[bytes]]
) -> Response:
    """`whole()` when all is there: JSON in parts, each a bounded amount of work. The client's
    hanging up aborts its sequences at once."""
    try:
        with deltas:
            await while_connected(request.receive, _collect(deltas, answer))
        if answer.size <= INLINE_SIZE:
            return Response(b"".join(whole()), media_type="application/json")
        writing: Writing = request.app.state.writing
        return JsonChunks(await while_connected(request.receive, writing.write(whole())))
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


async def respond_streaming(
    request: Request, deltas: TextStream, answer: Answer, usage: Usage
) -> Response:
    """Answer with events."""
    writing: Writing = request.app.state.writing
    return await open_stream(request, deltas, _events(deltas, answer, usage, writing))


async def open_stream(
    request: Request, deltas: TextStream, events: AsyncIterator[bytes]
) -> Response:
    """Answer with events, which begin once something is known or after STATUS_SECONDS: an error
    before that still has its status, later ones are told by the events."""
    try:
        began = await while_connected(request.receive, deltas.begins(STATUS_SECONDS))
    except ClientGone:
        deltas.close()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except BaseException:
        deltas.close()
        raise
    return EventStream(events, deltas, silent=not began)


async def _collect(deltas: TextStream, answer: Answer) -> None:
    pauses = Pauses()
    async for delta in deltas:
        answer.collect(delta)
        await pauses.take()


async def _events(
    deltas: TextStream, answer: Answer, usage: Usage, writing: Writing
) -> AsyncIterator[bytes]:
    """In one chunk what comes of one delta; with the last delta all that ends the stream, since
    each chunk is a write."""
    ending: list[bytes] = []
    try:
        async for delta in deltas:
            events: Iterable[bytes] = answer.events(delta)
            if len(delta.prompt_logprobs or ()) * MOST_LOGPROBS > INLINE_SIZE:
                events = await writing.write(events)
            if deltas.ended:
                ending += events
            else:
                yield b"".join(events)
        if usage is not Usage.NONE:
            ending.append(answer.usage_event())
    except Exception as error:  # the status is sent: an event is all that can still tell
        report = report_of(error)
        log_failure(error, report)
        ending.append(b"data: " + report.body() + b"\n\n")
    ending.append(DONE)
    yield b"".join(ending)
