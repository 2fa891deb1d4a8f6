"""Answers of /v1/completions and /v1/chat/completions, and the chunks of their streams."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # before 3.12 pydantic takes only this one

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(TypedDict):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class AboutPrompt(TypedDict):
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]


class RoutedExperts(TypedDict):
    """What gates chose for the tokens from `start` on: shape is [tokens, layers with experts,
    experts of a token], data little-endian int16 in base64."""

    start: int
    shape: list[int]
    dtype: Literal["int16"]
    data: str


class AboutEnd(TypedDict):
    """stop_reason comes with the finish_reason; token_ids and routed_experts where they were asked
    for."""

    index: int
    finish_reason: FinishReason | None
    stop_reason: NotRequired[str | int | None]
    token_ids: NotRequired[list[int]]
    routed_experts: NotRequired[RoutedExperts]


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(AboutEnd, AboutPrompt):
    text: str
    logprobs: CompletionLogprobs | None


class Head(TypedDict):
    id: str
    created: int
    model: str
    system_fingerprint: str


class Completion(Head):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(Head):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class Function(TypedDict):
    name: str
    arguments: str


class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: Function


class Reasoning(TypedDict):
    """The same under its newer and its older name."""

    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]


class ChatMessageAnswer(Reasoning):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(AboutEnd):
    message: ChatMessageAnswer
    logprobs: ChatLogprobs | None


class ChatCompletion(Head, AboutPrompt):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class ChatDelta(Reasoning):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta]]


class ChatChunkChoice(AboutEnd):
    delta: ChatDelta
    logprobs: ChatLogprobs | None


class ChatCompletionChunk(Head, AboutPrompt):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class ModelCard(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    """What went wrong; `param` names the field."""

    error: ErrorDetail
