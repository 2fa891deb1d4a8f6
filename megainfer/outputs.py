"""What offline generation returns, in vLLM's shape."""

from dataclasses import dataclass, field

from megainfer.messages import FinishReason


@dataclass(frozen=True)
class CompletionOutput:
    """One of the n answers to a prompt.

    finish_reason: "stop" (an end token, stop token or stop string) or "length". logprobs: for each
    token a map of token id to log-probability, if asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[dict[int, float]] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its answers. prompt is None when token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    num_cached_tokens: int = 0
    finished: bool = True


class GrowingOutput:
    """A CompletionOutput while its tokens come."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, float]] = []
        self.finish_reason: FinishReason | None = None

    def output(self) -> CompletionOutput:
        """What has come so far."""
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=str(self.finish_reason),
            logprobs=self.logprobs or None,
        )
