"""The bodies of the two requests, checked for types; ranges are SamplingParams' business."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from megainfer.errors import RequestError
from megainfer.frontend.generation_config import SAMPLING_FIELDS, GenerationDefaults
from megainfer.sampling import (
    MAX_ALLOWED_COPIES,
    MAX_BAD_WORDS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    RAW,
    SamplingParams,
)
from server.history.contents import join_content, template_call, with_thoughts
from server.openai.answer_options import AnswerOptions, Usage
from server.openai.structured import NAMED, Wanted, wanted_shape
from server.openai.wishes.thinking import EFFORT, Effort, switched, wanted_effort, wants_thinking
from server.openai.wishes.values import (
    PROMPT_SCHEMA,
    Integer,
    Integers,
    JsonObjects,
    Logprobs,
    Prompts,
    Strings,
    counted,
    parse_bias,
    parse_prompt,
)

MAX_MESSAGES = 4096
MAX_SALT_CHARACTERS = 256
CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
    ]
}


class Body(BaseModel):
    """Types are strict: "5" isn't a number. Fields that nobody knows are accepted."""

    model_config = ConfigDict(strict=True, extra="allow")


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Body):
    """What both requests have in common."""

    model: str | None = Field(None, description="a served name; the served model if left out")
    max_tokens: Integer | None = None
    min_tokens: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    min_p: float | None = None
    n: Integer | None = None
    seed: Integer | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[int, float] | None, BeforeValidator(parse_bias)] = None
    allowed_token_ids: Annotated[
        Integers | None, counted("allowed_token_ids", MAX_ALLOWED_COPIES, "token ids")
    ] = None
    bad_words: Annotated[Strings | None, counted("bad_words", MAX_BAD_WORDS, "strings")] = None
    stop: Annotated[str | Strings | None, counted("stop", MAX_STOP_STRINGS, "strings")] = None
    stop_token_ids: Annotated[
        Integers | None, counted("stop_token_ids", MAX_STOP_TOKEN_IDS, "token ids")
    ] = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Logprobs | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_routed_experts: bool | None = None
    stale_prefix: bool | None = None
    logprobs_mode: str | None = Field(None, description="raw_logprobs or processed_logprobs")
    truncate_prompt_tokens: Integer | None = Field(None, description="keep the last; -1: what fits")
    priority: Integer | None = Field(None, description="smaller is served first")
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARACTERS)] | None = Field(
        None, description="share cached prefixes only with requests of the same salt"
    )
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Strings | None = None
    guided_grammar: str | None = None
    json_schema: str | dict[str, Any] | None = Field(None, description="llama.cpp's guided_json")
    grammar: str | None = Field(None, description="llama.cpp's guided_grammar")
    regex: str | None = Field(None, description="SGLang's guided_regex")
    ebnf: str | None = Field(None, description="SGLang's guided_grammar")
    format: str | dict[str, Any] | None = Field(None, description='Ollama\'s: "json" or a schema')
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the best log-probabilities are wanted beside each token's own."""
        raise NotImplementedError

    @property
    def limit(self) -> int | None:
        """How many tokens may be generated; None where that isn't said."""
        raise NotImplementedError

    @property
    def is_echoed(self) -> bool:
        return False

    def answer_options(self) -> AnswerOptions:
        """What the answer holds beside text. Raises RequestError where it can't be had."""
        return AnswerOptions(
            usage=self._wanted_usage(),
            logprobs=self.wanted_logprobs,
            prompt_logprobs=self._wanted_prompt_logprobs(),
            token_ids=bool(self.return_token_ids),
            tokens_as_ids=bool(self.return_tokens_as_token_ids),
            skip_special_tokens=self.skip_special_tokens is not False,
            echo=self.is_echoed,
            echo_only=self.is_echoed and self.max_tokens == 0,
        )

    def wanted_shape(self) -> Wanted | None:
        """What the answer has to look like. Raises RequestError."""
        return wanted_shape({name: getattr(self, name) for name in SHAPE_FIELDS})

    def kept_tokens(self, max_model_len: int) -> int | None:
        """How many tokens at a prompt's end are kept. Raises RequestError."""
        kept = self.truncate_prompt_tokens
        if kept == -1:
            return max(max_model_len - (self.limit or 1), 1)
        if kept is not None and kept < 1:
            message = f"truncate_prompt_tokens must be -1 or at least 1, but is {kept}"
            raise RequestError(message, "truncate_prompt_tokens")
        return kept

    def sampling(
        self, defaults: GenerationDefaults, max_tokens: int | None, logprobs_mode: str = RAW
    ) -> SamplingParams:
        """Sampling parameters; the model's defaults, and this mode, stand in for what was left out.

        Raises RequestError for a value out of range.
        """
        own = {name: getattr(self, name) for name in SAME_IN_SAMPLING}
        author = {name: getattr(defaults, name) for name in SAMPLING_FIELDS}
        wishes = {name: _first(own[name], author.get(name)) for name in SAME_IN_SAMPLING}
        wishes["logprobs"] = self.wanted_logprobs
        wishes["logprobs_mode"] = _first(self.logprobs_mode, logprobs_mode)
        if self.is_echoed:
            wishes["prompt_logprobs"] = _first(self.prompt_logprobs, self.wanted_logprobs)
        given: dict[str, Any] = {name: value for name, value in wishes.items() if value is not None}
        return SamplingParams(max_tokens=max_tokens, **given)

    def _wanted_usage(self) -> Usage:
        options = self.stream_options
        if options is None:
            return Usage.NONE
        if not self.stream:
            raise RequestError(
                "stream_options may only be given with stream: true", "stream_options"
            )
        if not options.include_usage:
            return Usage.NONE
        return Usage.CONTINUOUS if options.continuous_usage_stats else Usage.LAST

    def _wanted_prompt_logprobs(self) -> bool:
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "prompt_logprobs aren't given with stream: true; leave one of them out",
                "prompt_logprobs",
            )
        return self.prompt_logprobs is not None


SHAPE_FIELDS = ("response_format", "structured_outputs", *NAMED, "format")
SAME_IN_SAMPLING = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "prompt_logprobs",
    "return_routed_experts",
    "stale_prefix",
)
"""Fields that mean the same in `SamplingParams`."""


class CompletionRequest(SamplingFields):
    """POST /v1/completions"""

    prompt: Annotated[Prompts, PlainValidator(parse_prompt), WithJsonSchema(PROMPT_SCHEMA)]
    add_special_tokens: bool | None = Field(None, description="true if left out")
    logprobs: Annotated[Logprobs | None, BeforeValidator(lambda v: None if v is False else v)] = (
        None
    )
    echo: bool | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def is_echoed(self) -> bool:
        return bool(self.echo)

    @property
    def limit(self) -> int | None:
        """max_tokens; where only the prompt is wanted, one is generated that nobody sees."""
        return 1 if self.is_echoed and self.max_tokens == 0 else self.max_tokens


class ChatMessage(Body):
    """One message; a developer's is a system message, which is what templates know, and that of a
    function (OpenAI's older name) a tool's. Only a user's and a system's must have a content."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    tool_calls: JsonObjects | None = None
    function_call: dict[str, Any] | None = None
    content: Annotated[
        str | None, BeforeValidator(join_content), WithJsonSchema(CONTENT_SCHEMA)
    ] = Field(None, validate_default=True)
    tool_call_id: str | None = None

    @field_validator("content")
    @classmethod
    def check_content(cls, content: str | None, info: ValidationInfo) -> str | None:
        if content is None and info.data.get("role") not in ("assistant", "tool", "function"):
            raise ValueError("must be a string or a list of text parts, and isn't there")
        return content

    def for_template(self) -> dict[str, Any]:
        """As `ChatForms` expects it: arguments of calls are texts. Raises RequestError."""
        fields = with_thoughts(self.model_dump(exclude_none=True, exclude={"function_call"}))
        fields["role"] = TEMPLATE_ROLES.get(self.role, self.role)
        refused = fields.pop("refusal", None)
        fields["content"] = self.content or (refused if isinstance(refused, str) else "")
        if calls := self._calls():
            fields["tool_calls"] = [template_call(call) for call in calls]
        else:
            fields.pop("tool_calls", None)
        return fields

    def _calls(self) -> list[dict[str, Any]]:
        older = {"id": (self.function_call or {}).get("name"), "function": self.function_call}
        return self.tool_calls or ([older] if self.function_call else [])


TEMPLATE_ROLES = {"developer": "system", "function": "tool"}


ASSISTANT = "assistant"
CONTINUED = ("prefix", "partial")
"""Flags of a message that the answer continues, at DeepSeek's and at Qwen's."""


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions"""

    messages: Annotated[
        list[ChatMessage],
        Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES),
        counted("messages", MAX_MESSAGES, "items"),
    ]
    max_completion_tokens: Integer | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: JsonObjects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    reasoning: dict[str, Any] | None = Field(None, description="effort and enabled: OpenRouter's")
    enable_thinking: bool | None = None
    thinking: dict[str, Any] | None = Field(None, description="type: enabled or disabled")
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = Field(None, description="false if left out")

    @property
    def wanted_logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            message = "top_logprobs may only be given with logprobs: true"
            raise RequestError(message, "top_logprobs")
        return None

    @property
    def limit(self) -> int | None:
        """What may be generated; max_completion_tokens goes before its older name."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    def template_variables(self) -> dict[str, Any]:
        """Names that the chat template may use, beside the messages."""
        effort = {} if self.effort is None else {EFFORT: self.effort}
        documents = {} if self.documents is None else {"documents": self.documents}
        switch = switched(self.wants_thinking)
        return {**effort, **switch, **(self.chat_template_kwargs or {}), **documents}

    @property
    def effort(self) -> str | None:
        """How hard the model is to think. Raises RequestError."""
        return wanted_effort(self.__dict__)

    @property
    def wants_thinking(self) -> bool | None:
        """Whether it is to think; None where nothing is said. Raises RequestError."""
        return wants_thinking(self.__dict__)

    @property
    def continues(self) -> bool:
        """Whether the last message is continued: also by DeepSeek's and Qwen's names for that,
        which stand in the message. Raises RequestError where they stand in another."""
        flagged = [
            at
            for at, message in enumerate(self.messages)
            if any((message.model_extra or {}).get(name) for name in CONTINUED)
        ]
        if flagged and (flagged != [len(self.messages) - 1] or self.messages[-1].role != ASSISTANT):
            shown = " or ".join(CONTINUED)
            where = f"messages[{flagged[0]}]"
            message = f"{where}: {shown} is for the assistant's message at the end only"
            raise RequestError(message, where)
        return bool(self.continue_final_message or flagged)

    def opens_an_answer(self) -> bool:
        """Whether the assistant begins to speak; else the last message is continued."""
        if self.continues and self.add_generation_prompt:
            raise RequestError(
                "add_generation_prompt and continue_final_message exclude each other; leave one "
                "of them out",
                "continue_final_message",
            )
        if self.continues:
            return False
        return self.add_generation_prompt is not False


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
