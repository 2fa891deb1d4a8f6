"""What offline generation returns, in vLLM's shape."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from megainfer.frontend.text_stream import TextDelta
from megainfer.messages.requests import FinishReason, TokenLogprobs
from megainfer.messages.routed_experts import RoutedExperts, joined

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability at one position. rank: 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


Logprobs = dict[int, Logprob]  # by token id: the best, best first, and the position's own token


class WeightSpan(NamedTuple):
    """So many tokens, one after the other, that were computed with the weights of this name.

    stale_tokens: of the tokens before them, those whose keys and values were taken as earlier
    weights had left them (`SamplingParams.stale_prefix`).
    """

    version: str
    tokens: int
    stale_tokens: int = 0


@dataclass(frozen=True)
class CompletionOutput:
    """One of the n answers to a prompt.

    finish_reason: "stop" (an end token, stop token or stop string) or "length"; None while it
    still grows. stop_reason: the
    stop string or stop token id that ended it, None where it was the model's end token or the
    length. logprobs: for each token, if asked for; cumulative_logprob is the sum of their own.
    weight_versions: of token_ids, in their order. routed_experts: int16 [tokens, layers with
    experts, top_k], if asked for: what the gates chose for each token of prompt and answer but the
    answer's last, which no layer has seen.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None = None
    logprobs: list[Logprobs] | None = None
    cumulative_logprob: float | None = None
    weight_versions: tuple[WeightSpan, ...] = ()
    routed_experts: "NDArray[np.int16] | None" = None


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its answers. prompt is None when token ids were given.

    prompt_logprobs: for each token of the prompt, if asked for; the first has none.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    num_cached_tokens: int = 0
    prompt_logprobs: list[Logprobs | None] | None = None
    finished: bool = True


class GrowingOutput:
    """A CompletionOutput while its tokens come."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.prompt_logprobs: list[TokenLogprobs] | None = None
        self.cached_tokens = 0
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._spans: list[WeightSpan] = []
        self._routed: list[RoutedExperts] = []
        self._finish_reason: FinishReason | None = None
        self._stop_reason: str | int | None = None

    def add(self, delta: TextDelta) -> None:
        """Its next piece."""
        self._text += delta.text
        self._token_ids += delta.token_ids
        self._logprobs += delta.logprobs or []
        if delta.token_ids:
            extend_spans(self._spans, delta)
        self._finish_reason, self._stop_reason = delta.finish_reason, delta.stop_reason
        self.cached_tokens += delta.cached_tokens
        if delta.routed is not None:
            self._routed.append(delta.routed)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs

    @property
    def ended(self) -> bool:
        return self._finish_reason is not None

    def output(self, text_of: Callable[[int], str]) -> CompletionOutput:
        """What has come so far; text_of: a token's own text."""
        own = [row.values[t] for row, t in zip(self._logprobs, self._token_ids, strict=False)]
        return CompletionOutput(
            index=self.index,
            text=self._text,
            token_ids=list(self._token_ids),
            finish_reason=None if self._finish_reason is None else str(self._finish_reason),
            stop_reason=self._stop_reason,
            logprobs=[spelled(row, text_of) for row in self._logprobs] or None,
            cumulative_logprob=sum(own) if own else None,
            weight_versions=tuple(self._spans),
            routed_experts=as_array(joined(self._routed)),
        )


def as_array(routed: RoutedExperts | None) -> "NDArray[np.int16] | None":
    """int16 [tokens, layers, top_k]."""
    if routed is None:
        return None
    import numpy as np  # not before somebody asks

    return np.frombuffer(routed.ids, "<i2").reshape(-1, routed.layers, routed.top_k)


def span_of(delta: TextDelta) -> WeightSpan:
    """Of its tokens."""
    return WeightSpan(delta.weights, len(delta.token_ids), delta.stale_tokens)


def extend_spans(spans: list[WeightSpan], delta: TextDelta) -> None:
    """By the delta's tokens.

    >>> spans = [WeightSpan("0", 2)]
    >>> for version in ("0", "1", "1"):
    ...     extend_spans(spans, TextDelta("request", "", [7], weights=version))
    >>> [(span.version, span.tokens) for span in spans]
    [('0', 3), ('1', 2)]
    """
    own = span_of(delta)
    if spans and spans[-1]._replace(tokens=own.tokens) == own:
        spans[-1] = own._replace(tokens=spans[-1].tokens + own.tokens)
    else:
        spans.append(own)


def spelled(row: TokenLogprobs, text_of: Callable[[int], str]) -> Logprobs:
    """A position's log-probabilities with ranks and texts."""
    return {token: Logprob(value, rank, text_of(token)) for token, value, rank in ranked(row)}


def ranked(row: TokenLogprobs) -> list[tuple[int, float, int]]:
    """(token id, log-probability, rank) of a position's tokens: the best, then its own."""
    last = len(row.values)
    return [
        (token, value, place if place < last else max(place, row.rank))
        for place, (token, value) in enumerate(row.values.items(), start=1)
    ]
