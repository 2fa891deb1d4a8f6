"""Log-probabilities in the forms of the two APIs."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from megainfer.frontend.outputs import ranked
from megainfer.messages.requests import TokenLogprobs
from megainfer.text.token_text import TokenTexts
from server.openai.answer_options import AnswerOptions
from server.openai.one_line import encode

LEAST = -9999.0  # JSON knows no infinity

Scores = Sequence[TokenLogprobs | None]  # one a token; None where nothing came before it


class LogprobsWriter(Protocol):
    """Writes one choice's log-probabilities, piece by piece."""

    def write(self, tokens: Sequence[int], scores: Scores) -> dict[str, Any]:
        """Of these tokens, which follow those of the last call. The best of each are JSON already:
        as objects they would take ten times the memory."""
        ...

    def move_to(self, offset: int) -> None:
        """What comes next begins at this character of the answer's text."""
        ...


class CompletionLogprobs:
    """`{"tokens", "token_logprobs", "top_logprobs", "text_offset"}`, one entry a token in each."""

    def __init__(self, texts: TokenTexts, options: AnswerOptions) -> None:
        self._texts = texts
        self._options = options
        self._offset = 0
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, tokens: Sequence[int], scores: Scores) -> dict[str, Any]:
        """See `LogprobsWriter.write`."""
        return {
            "tokens": [self._label(token) for token in tokens],
            "token_logprobs": [
                None if score is None else finite(score.values[token])
                for token, score in zip(tokens, scores, strict=True)
            ],
            "top_logprobs": [None if score is None else self._top(score) for score in scores],
            "text_offset": [self._advance(token) for token in tokens],
        }

    def move_to(self, offset: int) -> None:
        """See `LogprobsWriter.move_to`."""
        self._offset = offset
        self._characters.reset()

    def _label(self, token: int) -> str:
        return label(self._texts, self._options, token)

    def _top(self, score: TokenLogprobs) -> msgspec.Raw:
        """Tokens may share a text, such as that of half a character: the best one counts."""
        best: dict[str, float] = {}
        for token, value in score.values.items():
            best.setdefault(self._label(token), finite(value))
        return msgspec.Raw(encode(best))

    def _advance(self, token: int) -> int:
        """Where the token begins in the text, or the character that it is a part of."""
        begins = self._offset
        if self._texts.is_silent(token, self._options.skip_special_tokens):
            return begins
        text = self._texts.bytes_of(token)
        unfinished, _ = self._characters.getstate()
        if unfinished and text and not _continues(text[0]):
            begins += 1  # what was unfinished stays so, and is one replacement character
        self._offset += len(self._characters.decode(text))
        return begins


def _continues(byte: int) -> bool:
    """Whether a byte can't begin a character of UTF-8."""
    return byte & 0xC0 == 0x80


class ChatLogprobs:
    """`{"content": [{"token", "logprob", "bytes", "top_logprobs"}, ...]}`"""

    def __init__(self, texts: TokenTexts, options: AnswerOptions) -> None:
        self._texts = texts
        self._options = options

    def write(self, tokens: Sequence[int], scores: Scores) -> dict[str, Any]:
        """See `LogprobsWriter.write`."""
        content = [
            {**self._entry(token, score.values[token]), "top_logprobs": self._top(score)}
            for token, score in zip(tokens, scores, strict=True)
            if score is not None
        ]
        return {"content": content, "refusal": None}

    def move_to(self, offset: int) -> None:
        """Nothing: this form has no offsets."""

    def _top(self, score: TokenLogprobs) -> msgspec.Raw:
        best = list(score.values.items())[: self._options.logprobs]
        return msgspec.Raw(encode([self._entry(token, value) for token, value in best]))

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        return {
            "token": label(self._texts, self._options, token),
            "logprob": finite(value),
            "bytes": list(self._texts.bytes_of(token)),
        }


def prompt_logprobs(
    scores: Sequence[TokenLogprobs], texts: TokenTexts, positions: int
) -> Iterator[bytes]:
    """vLLM's form, in parts of so many positions: JSON that tells for each token of the prompt what
    was likely there; the first has nothing."""
    yield b"[null"
    for start in range(0, len(scores), positions):
        part = scores[start : start + positions]
        yield b"," + encode([_spelled(score, texts) for score in part])[1:-1]
    yield b"]"


def _spelled(score: TokenLogprobs, texts: TokenTexts) -> dict[str, dict[str, Any]]:
    return {
        str(token): {
            "logprob": finite(value),
            "rank": rank,
            "decoded_token": texts.text_of(token),
        }
        for token, value, rank in ranked(score)
    }


def label(texts: TokenTexts, options: AnswerOptions, token: int) -> str:
    """How a token is shown."""
    return f"token_id:{token}" if options.tokens_as_ids else texts.text_of(token)


def finite(value: float) -> float:
    """A log-probability that JSON can hold."""
    return max(value, LEAST)
