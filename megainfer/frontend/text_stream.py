"""Token streams as text: what the server sends and the offline LLM collects."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Self

from megainfer.errors import RequestError
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.sequence_request import SequenceRequest
from megainfer.frontend.token_stream import TokenStream
from megainfer.messages.requests import FinishReason, TokenEvent, TokenLogprobs
from megainfer.messages.routed_experts import RoutedExperts
from megainfer.sampling import SamplingParams
from megainfer.text.detokenizer import IncrementalDetokenizer, StopStrings
from megainfer.text.tokenizer import Tokenizer
from megainfer.topology import FOLDERS_OWN

SEED_RANGE = 2**63


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one event added to a sequence.

    text: may be empty, inside a character or a possible stop string. stop_reason: the stop string
    or the stop token id of the request that ended it, if one did. cached_tokens: prompt tokens
    from the prefix cache, on the first delta. logprobs: for each of token_ids, if asked for.
    prompt_logprobs: for each token of the prompt but the first, on the first delta, if asked for.
    weights: the name of those that token_ids were computed with. routed: of all tokens before the
    last of token_ids that no earlier delta told of, if asked for. stale_tokens: as in `WeightSpan`.
    """

    request_id: str
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    weights: str = FOLDERS_OWN.name
    routed: RoutedExperts | None = None
    stale_tokens: int = 0


class SequenceText:
    """The text of one sequence, as its tokens come. Without a tokenizer it stays empty.

    after: see `IncrementalDetokenizer`.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, params: SamplingParams, after: Sequence[int] = ()
    ) -> None:
        self._detokenizer = tokenizer and IncrementalDetokenizer(
            tokenizer, params.skip_special_tokens, after
        )
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._with_stop_token = params.include_stop_str_in_output
        self._tokens_before_end = params.min_tokens
        self._stop_token_ids = frozenset(params.stop_token_ids)

    def push(self, event: TokenEvent) -> TextDelta:
        """The event's text; its finish_reason is STOP when a stop string has ended it."""
        # The token that stops a sequence counts as generated, but isn't part of the text.
        stopped = event.finish_reason is FinishReason.STOP
        silent = stopped and not self._with_stop_token
        spoken = event.token_ids[:-1] if silent else event.token_ids
        pieces = []
        for count, token in enumerate(spoken, start=1):
            pieces.append(self._push_token(token))
            if self._stops.matched is not None:
                return self._cut(event, "".join(pieces), count)
        if event.finish_reason is not None:
            pieces.append(self._rest())
            if self._stops.matched is not None:
                return self._cut(event, "".join(pieces), len(event.token_ids))
        return TextDelta(
            event.request_id,
            "".join(pieces),
            event.token_ids,
            event.finish_reason,
            self._stop_token(event) if stopped else None,
            event.cached_tokens,
            event.logprobs,
            event.prompt_logprobs,
            event.weights,
            event.routed,
            event.stale_tokens,
        )

    def _push_token(self, token: int) -> str:
        self._tokens_before_end -= 1
        return self._stops.push(self._piece(token), self._may_end)

    @property
    def _may_end(self) -> bool:
        """Whether `min_tokens` tokens have come before the latest one."""
        return self._tokens_before_end < 0

    def _piece(self, token: int) -> str:
        return self._detokenizer.push(token) if self._detokenizer else ""

    def _rest(self) -> str:
        tail = self._detokenizer.flush() if self._detokenizer else ""
        return self._stops.push(tail, self._may_end) + self._stops.flush()

    def _cut(self, event: TokenEvent, text: str, tokens: int) -> TextDelta:
        """The last delta: a stop string was completed by the event's `tokens`-th token."""
        return TextDelta(
            event.request_id,
            text,
            event.token_ids[:tokens],
            FinishReason.STOP,
            self._stops.matched,
            event.cached_tokens,
            event.logprobs and event.logprobs[:tokens],
            event.prompt_logprobs,
            event.weights,
            event.routed,
            event.stale_tokens,
        )

    def _stop_token(self, event: TokenEvent) -> int | None:
        last = event.token_ids[-1] if event.token_ids else None
        return last if last in self._stop_token_ids else None


class TextStream:
    """An asynchronous iterator of text deltas over a token stream, which it owns."""

    def __init__(
        self, tokens: TokenStream, make_text: Mapping[str, Callable[[], SequenceText]]
    ) -> None:
        """make_text: by the sequences' ids; called when the first of its tokens come."""
        self._tokens = tokens
        self._make_text = make_text
        self._texts: dict[str, SequenceText] = {}
        self._first: TextDelta | None = None

    @classmethod
    def open(
        cls,
        engine: EngineClient,
        tokenizer: Tokenizer | None,
        sequences: list[SequenceRequest],
        continues_prompt: bool = False,
        client: str = "",
        size: int = 0,
    ) -> "TextStream":
        """Submit these sequences. Raises what `EngineClient.submit` raises; client, size: as there.

        continues_prompt: whether their texts go on where the prompts' end, so that a space between
        them is theirs, or are texts of their own, as answers are.
        """
        if tokenizer is None:
            _check_without_tokenizer(sequences)
        else:
            spelled = _spellings(sequences, tokenizer)
            if any(spelled.values()):
                sequences = [replace(s, bad_words=spelled[s.params.bad_words]) for s in sequences]
        tokens = engine.submit(sequences, client=client, size=size)
        texts = {
            s.request_id: partial(
                SequenceText, tokenizer, s.params, s.prompt_ids if continues_prompt else ()
            )
            for s in sequences
        }
        return cls(tokens, texts)

    def __aiter__(self) -> Self:
        return self

    @property
    def ended(self) -> bool:
        """Whether the latest delta was the last."""
        return self._first is None and self._tokens.ended

    async def begins(self, seconds: float) -> bool:
        """Whether the first delta comes within so long; it is still the next one. Raises the error
        that comes instead of it."""
        try:
            async with asyncio.timeout(seconds):
                self._first = await anext(self)
        except TimeoutError:
            return False
        return True

    async def __anext__(self) -> TextDelta:
        if (first := self._first) is not None:
            self._first = None
            return first
        event = await anext(self._tokens)
        text = self._texts.get(event.request_id)
        if text is None:
            text = self._texts[event.request_id] = self._make_text[event.request_id]()
        delta = text.push(event)
        if delta.finish_reason is not None:
            self._tokens.drop(event.request_id)  # a stop string: the node doesn't know of it
        return delta

    def close(self) -> None:
        """Abort every sequence that hasn't ended."""
        self._tokens.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _check_without_tokenizer(sequences: list[SequenceRequest]) -> None:
    if any(sequence.params.stop for sequence in sequences):
        raise RequestError(
            "stop strings need the model's tokenizer, and its folder has none; use stop_token_ids",
            "stop",
        )
    if any(sequence.params.bad_words for sequence in sequences):
        raise RequestError(
            "bad_words need the model's tokenizer, and its folder has none; give the tokens a "
            "logit_bias of -100",
            "bad_words",
        )


def _spellings(
    sequences: Sequence[SequenceRequest], tokenizer: Tokenizer
) -> dict[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Of each sequence's bad words; those that came together have the same."""
    asked = {sequence.params.bad_words for sequence in sequences}
    return {words: _spelled(words, tokenizer) for words in asked}


def _spelled(bad_words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it is spelled at a text's beginning and, after a space, inside it."""
    words = [word.lstrip() or word for word in bad_words]
    spellings = [spelling for word in words for spelling in (word, f" {word}")]
    encoded = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in spellings)
    return tuple(dict.fromkeys(ids for ids in encoded if ids))


def unfold(request: SequenceRequest) -> list[SequenceRequest]:
    """The n sequences of a request: ids `<id>-<i>`, seeds `seed + i` (wrapping in 64 bits)."""
    seed = request.drawn_seed()
    return [
        replace(
            request,
            request_id=f"{request.request_id}-{i}",
            seed=(seed + i + SEED_RANGE) % (2 * SEED_RANGE) - SEED_RANGE,
        )
        for i in range(request.params.n)
    ]
