"""How one answer looks in each of the two APIs."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any, Protocol

from megainfer.messages.routed_experts import RoutedExperts
from megainfer.text.token_text import TokenTexts
from megainfer.topology import FOLDERS_OWN
from server.openai.answer_options import AnswerOptions
from server.openai.logprobs import ChatLogprobs, CompletionLogprobs, LogprobsWriter
from server.openai.piece import Piece
from server.openai.prompts import Prompt
from server.openai.reader import CallPiece, ChoiceReader


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

    def reader(self, prompt: Prompt) -> ChoiceReader | None:
        """Of one choice's text; None where it is taken as it is."""
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

    def reader(self, prompt: Prompt) -> None:
        return None


class ChatShape:
    """/v1/chat/completions"""

    prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"
    prompt_in_choice = False
    continues_prompt = False

    def __init__(self, make_reader: Callable[[Prompt], ChoiceReader] | None = None) -> None:
        self._make_reader = make_reader

    def choice(self, piece: Piece) -> dict[str, Any]:
        content = None if piece.calls and not piece.text.strip() else piece.text
        message = {"role": "assistant", "content": content, "refusal": None, **_beside(piece)}
        for call in message.get("tool_calls", ()):
            del call["index"]
        return {"index": piece.index, "message": message, **_ending(piece)}

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, **_ending(Piece(index, ""))}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        # The last chunk's delta is empty when there is no text left, as OpenAI's is.
        delta = _beside(piece)
        if piece.text or not (delta or piece.finish_reason):
            delta["content"] = piece.text
        return {"index": piece.index, "delta": delta, **_ending(piece)}

    def logprobs_writer(self, texts: TokenTexts, options: AnswerOptions) -> LogprobsWriter:
        return ChatLogprobs(texts, options)

    def reader(self, prompt: Prompt) -> ChoiceReader | None:
        return self._make_reader(prompt) if self._make_reader else None


def _beside(piece: Piece) -> dict[str, Any]:
    """What there is beside content; reasoning under its newer and its older name."""
    fields: dict[str, Any] = {}
    if piece.reasoning:
        fields |= {"reasoning": piece.reasoning, "reasoning_content": piece.reasoning}
    if piece.calls:
        fields["tool_calls"] = [_call(call) for call in piece.calls]
    return fields


def _call(call: CallPiece) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _ending(piece: Piece) -> dict[str, Any]:
    fields: dict[str, Any] = {"logprobs": piece.logprobs, "finish_reason": piece.finish_reason}
    if piece.finish_reason is not None:
        fields["stop_reason"] = piece.stop_reason
    if piece.token_ids is not None:
        fields["token_ids"] = piece.token_ids
    if any(span.version != FOLDERS_OWN.name for span in piece.weights):
        fields["weight_version"] = piece.weights[-1].version
        if piece.token_ids is not None:
            fields["weight_versions"] = [span._asdict() for span in piece.weights]
    if piece.routed is not None:
        fields["routed_experts"] = _routed(piece.routed)
    return fields


def _routed(routed: RoutedExperts) -> dict[str, Any]:
    """Numbers as base64: as a list they would take several times as much."""
    tokens = routed.stop - routed.start
    return {
        "start": routed.start,
        "shape": [tokens, routed.layers, routed.top_k],
        "dtype": "int16",
        "data": b64encode(routed.ids).decode(),
    }
