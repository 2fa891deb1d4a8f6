"""What offline generation returns, in vLLM's shape."""

from dataclasses import dataclass, field


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
