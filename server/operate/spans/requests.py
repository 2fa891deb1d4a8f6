"""A span for each request that reached the engine, with the attributes that vLLM gives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from megainfer.messages.requests import FinishReason, Submit, TokenEvent
from server.http.request_id import current_request_id

NAME = "llm_request"


@dataclass(slots=True)
class _Request:
    """All sequences of one request. Times are in seconds of the observer's clock; queued_seconds
    is of the sequence that had the first token."""

    span: Span
    submitted_at: float
    unfinished: int
    first_at: float | None = None
    last_at: float = 0.0
    queued_seconds: float = 0.0
    generated: int = 0
    reasons: list[str] = field(default_factory=list)


class RequestSpans:
    """`EngineObserver`; a span's parent is in the context in which its request is submitted."""

    def __init__(self, tracer: Tracer, model: str, clock: Callable[[], float] = monotonic) -> None:
        self._tracer = tracer
        self._model = model
        self._clock = clock
        self._requests: dict[str, _Request] = {}  # by their sequences' ids

    def submitted(self, submits: Sequence[Submit], nodes: Sequence[int | None]) -> None:
        """See `EngineObserver.submitted`; what comes together is one request."""
        attributes = {"gen_ai.response.model": self._model, **_asked(submits), **_named()}
        span = self._tracer.start_span(NAME, kind=SpanKind.SERVER, attributes=attributes)
        request = _Request(span, self._clock(), len(submits))
        self._requests.update((submit.request_id, request) for submit in submits)

    def moved(self, request_id: str, node: int) -> None:
        """See `EngineObserver.moved`; a span tells nothing of nodes."""

    def produced(self, node: int, events: Sequence[TokenEvent]) -> None:
        """See `EngineObserver.produced`."""
        now = self._clock()
        for event in events:
            request = self._requests.get(event.request_id)
            if request is None:
                continue
            if event.token_ids:
                _count(request, event, now)
            if event.finish_reason is not None:
                self.ended(event.request_id, event.finish_reason)

    def ended(self, request_id: str, reason: FinishReason | None) -> None:
        """See `EngineObserver.ended`; the last sequence's end is the span's."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        request.reasons.append("error" if reason is None else str(reason))
        request.unfinished -= 1
        if request.unfinished:
            return
        request.span.set_attributes(_became(request, self._clock()))
        if "error" in request.reasons:
            request.span.set_status(StatusCode.ERROR)
        request.span.end()


def _count(request: _Request, event: TokenEvent, now: float) -> None:
    if request.first_at is None:
        request.first_at, request.queued_seconds = now, event.queued_seconds
    request.last_at = now
    request.generated += len(event.token_ids)


def _named() -> dict[str, AttributeValue]:
    """The X-Request-Id that the answer carries, as OpenTelemetry calls headers."""
    request_id = current_request_id.get()
    return {} if request_id is None else {"http.response.header.x-request-id": [request_id]}


def _asked(submits: Sequence[Submit]) -> dict[str, AttributeValue]:
    """Ids are `<request>-<prompt>-<i of n>`; sequences of one request are asked for alike."""
    first = submits[0]
    prompts = {submit.request_id.rpartition("-")[0]: len(submit.prompt) for submit in submits}
    return {
        "gen_ai.request.id": first.request_id.rsplit("-", 2)[0],
        "gen_ai.request.max_tokens": first.max_tokens,
        "gen_ai.request.temperature": first.temperature,
        "gen_ai.request.top_p": first.top_p,
        "gen_ai.request.n": len(submits) // len(prompts),
        "gen_ai.usage.num_sequences": len(submits),
        "gen_ai.usage.prompt_tokens": sum(prompts.values()),
    }


def _became(request: _Request, now: float) -> dict[str, AttributeValue]:
    """Latencies in seconds; of a request without a token only how long it took."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.usage.completion_tokens": request.generated,
        "gen_ai.response.finish_reasons": request.reasons,
        "gen_ai.latency.e2e": now - request.submitted_at,
    }
    if request.first_at is None:
        return attributes
    first, decode = request.first_at - request.submitted_at, request.last_at - request.first_at
    prefill = max(0.0, first - request.queued_seconds)
    return {
        **attributes,
        "gen_ai.latency.time_to_first_token": first,
        "gen_ai.latency.time_in_queue": request.queued_seconds,
        "gen_ai.latency.time_in_model_prefill": prefill,
        "gen_ai.latency.time_in_model_decode": decode,
        "gen_ai.latency.time_in_model_inference": prefill + decode,
    }
