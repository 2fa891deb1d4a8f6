"""One streaming request to an OpenAI-compatible server, and the times of its answer."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from megainfer.bench.events import Event, EventReader
from megainfer.bench.sample import Outcome, Sample
from megainfer.errors import MegaInferError

CONNECT_SECONDS = 30.0
TOTAL_SECONDS = 6 * 3600.0
SHOWN = 500  # characters of an error's body that are kept


@dataclass(frozen=True)
class Target:
    """What every request has in common. url: scheme, host and path; chat: which of OpenAI's two
    shapes it takes. silence_seconds: how long an answer may be silent before it has failed."""

    url: str
    model: str
    chat: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    silence_seconds: float = 600.0
    verify_tls: bool = True

    def request(self, sample: Sample) -> dict[str, Any]:
        """The body of one request; `body` overrides what is said here."""
        common = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            if not isinstance(sample.prompt, str):
                raise MegaInferError(
                    "--backend openai-chat takes text, and these prompts are token ids; name the "
                    "model's tokenizer with --tokenizer"
                )
            messages = [{"role": "user", "content": sample.prompt}]
            shaped = {"messages": messages, "max_completion_tokens": sample.output_tokens}
        else:
            shaped = {"prompt": sample.prompt, "max_tokens": sample.output_tokens}
        return {**common, **shaped, **self.body}


class Client:
    """Connections to one server, kept open between requests; use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def __aenter__(self) -> Self:
        limits = aiohttp.ClientTimeout(
            total=TOTAL_SECONDS,
            sock_connect=CONNECT_SECONDS,
            sock_read=self._target.silence_seconds,
        )
        connector = aiohttp.TCPConnector(limit=0, ssl=self._target.verify_tls, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=limits, headers=dict(self._target.headers)
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def send(self, sample: Sample) -> Outcome:
        """The times of the answer; a failure is told in them, and only cancelling is raised."""
        outcome = Outcome(prompt_tokens=sample.prompt_tokens)
        body = msgspec.json.encode(self._target.request(sample))
        outcome.start = time.perf_counter()
        try:
            await self._stream(body, outcome)
        except TimeoutError:
            outcome.error = (
                f"no byte for {self._target.silence_seconds:g} s (--request-timeout-sec), "
                f"after {outcome.chunks} pieces of the answer"
            )
        except (aiohttp.ClientError, OSError, MegaInferError, msgspec.DecodeError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        return outcome

    async def _stream(self, body: bytes, outcome: Outcome) -> None:
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._target.url, data=body, headers=headers) as response:
            if response.status != 200:
                text = (await response.text(errors="replace"))[:SHOWN]
                raise MegaInferError(f"HTTP {response.status}: {text}")
            answer = AnswerReader(outcome, self._target.chat)
            async for piece in response.content.iter_any():
                answer.feed(piece, time.perf_counter())
        answer.end()


class AnswerReader:
    """Reads one stream into an outcome."""

    def __init__(self, outcome: Outcome, chat: bool) -> None:
        self._outcome, self._chat = outcome, chat
        self._events = EventReader()
        self._pieces: list[str] = []
        self._done = False

    def feed(self, piece: bytes, now: float) -> None:
        """Bytes that came at `now`. Raises MegaInferError for an error event."""
        for event in self._events.feed(piece):
            if event.data == b"[DONE]":
                self._done = True
            else:
                self._read(event, now)

    def end(self) -> None:
        """The connection closed in order. Raises MegaInferError if the answer isn't whole."""
        self._outcome.text = "".join(self._pieces)
        if not self._done:
            raise MegaInferError(f"the stream broke off after {self._outcome.chunks} pieces")
        if self._outcome.ttft is None:
            raise MegaInferError("the stream ended without a token")

    def _read(self, event: Event, now: float) -> None:
        data = msgspec.json.decode(event.data)
        if not isinstance(data, dict):
            raise MegaInferError(f"an event holds {event.data[:SHOWN]!r} instead of an object")
        if event.name == b"error" or "error" in data:
            raise MegaInferError(_message(data))
        if usage := data.get("usage"):
            self._count(usage)
        for choice in data.get("choices") or ():
            text = self._text(choice)
            if text is not None:
                self._outcome.token_at(now)
                self._pieces.append(text)

    def _count(self, usage: Mapping[str, Any]) -> None:
        if (tokens := usage.get("completion_tokens")) is not None:
            self._outcome.output_tokens = int(tokens)
        if (tokens := usage.get("prompt_tokens")) is not None:
            self._outcome.prompt_tokens = int(tokens)

    def _text(self, choice: Mapping[str, Any]) -> str | None:
        """None: the opening of a chat's answer, which names the role and has no token."""
        if not self._chat:
            return str(choice.get("text") or "")
        delta = choice.get("delta") or {}
        text = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("content")
        told = text or delta.get("tool_calls") or choice.get("finish_reason")
        return None if "role" in delta and not told else str(text or "")


async def wait_until_ready(client: Client, sample: Sample, seconds: float) -> None:
    """Send this until it is answered. Raises MegaInferError with the last failure after that."""
    last = "it was not answered in time"
    try:
        async with asyncio.timeout(seconds):
            while (outcome := await client.send(sample)).error is not None:
                last = outcome.error
                await asyncio.sleep(min(1.0, seconds / 10))
    except TimeoutError:
        raise MegaInferError(f"not ready within {seconds:g} s: {last}") from None


def _message(data: Mapping[str, Any]) -> str:
    error = data.get("error", data)
    message = error.get("message", error) if isinstance(error, dict) else error
    return f"error event: {message}"[:SHOWN]
