"""One sequence of an answer, while its deltas come."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from megainfer.frontend.outputs import WeightSpan, extend_spans, span_of
from megainfer.frontend.text_stream import TextDelta
from megainfer.messages.requests import TokenLogprobs
from megainfer.messages.routed_experts import RoutedExperts, joined
from server.openai.answer_options import AnswerOptions
from server.openai.logprobs import LogprobsWriter, Scores
from server.openai.piece import Piece
from server.openai.prompts import Prompt
from server.openai.reader import ChoiceReader, Reading

PART_POSITIONS = 32
"""Whose log-probabilities are written at once: a millisecond's work, with the 20 best of each."""


class Choice:
    """first_of_prompt: of a prompt's n answers the first counts for its cached tokens."""

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        first_of_prompt: bool,
        options: AnswerOptions,
        writer: LogprobsWriter,
        reader: ChoiceReader | None = None,
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.first_of_prompt = first_of_prompt
        self.prompt_scores: list[TokenLogprobs] | None = None
        self._options = options
        self._writer = writer
        self._reader = reader
        # Of what is kept for the whole: deltas themselves would take several times as much.
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs_kept: list[TokenLogprobs] = []
        self._spans: list[WeightSpan] = []
        self._routed: list[RoutedExperts] = []
        self._last: TextDelta | None = None
        self._opened = False

    @property
    def opened(self) -> bool:
        """Whether a piece of it was made."""
        return self._opened

    @property
    def reasoning_tokens(self) -> int | None:
        """Of what pieces were made of; None where the model doesn't think."""
        return self._reader.reasoning_tokens if self._reader else None

    def collect(self, delta: TextDelta) -> None:
        """Keep a delta for the whole."""
        self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        if delta.token_ids:
            extend_spans(self._spans, delta)
        self._logprobs_kept += delta.logprobs or []
        if delta.routed is not None:
            self._routed.append(delta.routed)
        if self._last is None:
            self.prompt_scores = delta.prompt_logprobs
        self._last = delta

    def whole(self) -> Generator[bytes, None, Piece]:
        """All that was collected, as one piece; see `making`."""
        last = self._last
        assert last is not None, "every sequence ends with a delta"
        piece = yield from self.making(
            TextDelta(
                last.request_id,
                "".join(self._texts),
                self._token_ids,
                last.finish_reason,
                last.stop_reason,
                logprobs=self._logprobs_kept,
                prompt_logprobs=self.prompt_scores,
                routed=joined(self._routed),
            )
        )
        return replace(piece, weights=tuple(self._spans))

    def making(self, delta: TextDelta) -> Generator[bytes, None, Piece]:
        """What a delta adds; the first begins with the prompt where that is echoed. Gives nothing,
        as often as a bounded part of the work is done, and returns the piece."""
        first, self._opened = not self._opened, True
        if delta.prompt_logprobs is not None:
            self.prompt_scores = delta.prompt_logprobs
        options = self._options
        text = "" if options.echo_only else delta.text
        token_ids = [] if options.echo_only else delta.token_ids
        reading, logprobs = self._read(text, delta), None
        if options.logprobs is not None:
            logprobs = yield from self._logprobs(delta, first)
        return Piece(
            index=self.index,
            text=self.prompt.echo + text if first and options.echo else reading.content,
            reasoning=reading.reasoning,
            calls=reading.calls,
            finish_reason=reading.finish_reason,
            stop_reason=None if options.echo_only else delta.stop_reason,
            logprobs=logprobs,
            token_ids=token_ids if options.token_ids else None,
            weights=(span_of(delta),) if token_ids else (),
            routed=delta.routed,
        )

    def _read(self, text: str, delta: TextDelta) -> Reading:
        if self._reader is None:
            return Reading(text, "", (), delta.finish_reason)
        return self._reader.read(text, delta.token_ids, delta.finish_reason)

    def _logprobs(
        self, delta: TextDelta, first: bool
    ) -> Generator[bytes, None, dict[str, Any] | None]:
        scores = [] if self._options.echo_only else delta.logprobs or []
        echoes = first and self._options.echo
        if not (echoes or scores):
            return None
        written = self._writer.write([], [])
        if echoes:
            before = [None, *(self.prompt_scores or [])]
            yield from self._write(written, self.prompt.ids, before)
            self._writer.move_to(len(self.prompt.echo))
        yield from self._write(written, delta.token_ids if scores else [], scores)
        return written

    def _write(
        self, written: dict[str, Any], tokens: Sequence[int], scores: Scores
    ) -> Iterator[bytes]:
        for start in range(0, len(tokens), PART_POSITIONS):
            part = slice(start, start + PART_POSITIONS)
            for name, entries in self._writer.write(tokens[part], scores[part]).items():
                if entries:
                    written[name] += entries
            yield b""
