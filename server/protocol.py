"""The bodies of the two requests, checked for types; ranges are SamplingParams' business."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from megainfer.generation_config import GenerationDefaults
from megainfer.sampling import SamplingParams

Prompts = list[str] | list[list[int]]

PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}
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


def parse_prompt(value: Any) -> Prompts:
    """One prompt or several, as texts or token ids, to a list of them."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{PROMPT_KINDS}, not {value!r:.80}")
    kinds = set(map(type, value))
    if kinds == {str}:
        return list(value)
    if kinds == {int}:
        return [value]
    if kinds == {list} and all(set(map(type, ids)) == {int} for ids in value):
        return list(value)
    raise ValueError(f"{PROMPT_KINDS}, not a mixture or something else: {value!r:.80}")


PROMPT_KINDS = (
    "must be a string, a list of strings, a list of token ids or a list of lists of token ids, "
    "none of them empty"
)


def join_content(value: Any) -> str:
    """A message's text; parts are joined by line ends, as vLLM does for templates of strings."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a string or a list of text parts, not {value!r:.80}")
    return "\n".join(_part_text(part) for part in value)


def _part_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        raise ValueError(
            f'only parts {{"type": "text", "text": "..."}} are offered, not {part!r:.80}'
        )
    return text


class Body(BaseModel):
    """Types are strict: "5" isn't a number. Fields that nobody knows are accepted."""

    model_config = ConfigDict(strict=True, extra="allow")


class StreamOptions(Body):
    include_usage: bool = False


class SamplingFields(Body):
    """What both requests have in common."""

    model: str | None = Field(None, description="a served name; the served model if left out")
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, defaults: GenerationDefaults, max_tokens: int | None) -> SamplingParams:
        """Sampling parameters; the model's defaults stand in for what was left out.

        Raises RequestError for a value out of range.
        """
        wishes = {
            "n": self.n,
            "temperature": _first(self.temperature, defaults.temperature),
            "top_p": _first(self.top_p, defaults.top_p),
            "top_k": _first(self.top_k, defaults.top_k),
            "seed": self.seed,
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "ignore_eos": self.ignore_eos,
            "skip_special_tokens": self.skip_special_tokens,
        }
        given: dict[str, Any] = {name: value for name, value in wishes.items() if value is not None}
        return SamplingParams(max_tokens=max_tokens, **given)


class CompletionRequest(SamplingFields):
    """POST /v1/completions"""

    prompt: Annotated[Prompts, PlainValidator(parse_prompt), WithJsonSchema(PROMPT_SCHEMA)]
    add_special_tokens: bool = True


class ChatMessage(Body):
    """One message; a developer's is a system message, which is what templates know."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(join_content), WithJsonSchema(CONTENT_SCHEMA)]

    def for_template(self) -> dict[str, Any]:
        fields = self.model_dump(exclude_none=True)
        role = "system" if self.role == "developer" else self.role
        return {**fields, "role": role}


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
