"""How one answer looks in each of the two APIs."""

from typing import Any, Protocol

from megainfer.text_stream import TextDelta


class Shape(Protocol):
    """What differs between completions and chat completions."""

    prefix: str  # of the answer's id
    whole: str  # "object" of a complete answer
    part: str  # "object" of a streamed chunk

    def choice(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        """One choice of a complete answer."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """A choice's first chunk, before any text; None where there is none."""
        ...

    def piece(self, index: int, delta: TextDelta) -> dict[str, Any]:
        """A chunk of a choice."""
        ...


class CompletionShape:
    """/v1/completions"""

    prefix = "cmpl"
    whole = "text_completion"
    part = "text_completion"

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def piece(self, index: int, delta: TextDelta) -> dict[str, Any]:
        return self.choice(index, delta.text, delta.finish_reason)


class ChatShape:
    """/v1/chat/completions"""

    prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def choice(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        return _chat_chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, delta: TextDelta) -> dict[str, Any]:
        # The last chunk's delta is empty when there is no text left, as OpenAI's is.
        content = {} if delta.finish_reason and not delta.text else {"content": delta.text}
        return _chat_chunk(index, content, delta.finish_reason)


def _chat_chunk(index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
