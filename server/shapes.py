"""How one answer looks in each of the two APIs."""

from typing import Any, Protocol

from megainfer.token_text import TokenTexts
from server.answer_options import AnswerOptions
from server.logprobs import ChatLogprobs, CompletionLogprobs, LogprobsWriter
from server.piece import Piece


class Shape(Protocol):
    """What differs between completions and chat completions."""

    prefix: str  # of the answer's id
    whole: str  # "object" of a complete answer
    part: str  # "object" of a streamed chunk
    prompt_in_choice: bool  # where it is told of the prompt: in each choice, or beside them
    continues_prompt: bool  # whether the text goes on where the prompt's ends

    def choice(self, piece: Piece) -> dict[str, Any]:
        """One choice of a complete answer."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """A choice's first chunk, before any text; None where there is none."""
        ...

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A chunk of a choice."""
        ...

    def logprobs_writer(self, texts: TokenTexts, options: AnswerOptions) -> LogprobsWriter:
        """For one choice."""
        ...


class CompletionShape:
    """/v1/completions"""

    prefix = "cmpl"
    whole = "text_completion"
    part = "text_completion"
    prompt_in_choice = True
    continues_prompt = True

    def choice(self, piece: Piece) -> dict[str, Any]:
        return {"index": piece.index, "text": piece.text, **_ending(piece)}

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def chunk(self, piece: Piece) -> dict[str, Any]:
        return self.choice(piece)

    def logprobs_writer(self, texts: TokenTexts, options: AnswerOptions) -> LogprobsWriter:
        return CompletionLogprobs(texts, options)


class ChatShape:
    """/v1/chat/completions"""

    prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"
    prompt_in_choice = False
    continues_prompt = False

    def choice(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": piece.index, "message": message, **_ending(piece)}

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, **_ending(Piece(index, ""))}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        # The last chunk's delta is empty when there is no text left, as OpenAI's is.
        delta = {} if piece.finish_reason and not piece.text else {"content": piece.text}
        return {"index": piece.index, "delta": delta, **_ending(piece)}

    def logprobs_writer(self, texts: TokenTexts, options: AnswerOptions) -> LogprobsWriter:
        return ChatLogprobs(texts, options)


def _ending(piece: Piece) -> dict[str, Any]:
    fields: dict[str, Any] = {"logprobs": piece.logprobs, "finish_reason": piece.finish_reason}
    if piece.finish_reason is not None:
        fields["stop_reason"] = piece.stop_reason
    if piece.token_ids is not None:
        fields["token_ids"] = piece.token_ids
    return fields
