"""The body of POST /v1/responses, and the chat that it asks for."""

from typing import Annotated, Any

from pydantic import Field

from megainfer.errors import RequestError, cited
from server.openai.protocol import MAX_MESSAGES, Body, ChatRequest
from server.openai.translation import Json, chat_request, refuse
from server.openai.wishes.values import Integer, JsonObjects, Logprobs, counted
from server.responses.items import History
from server.responses.tools import Toolbox
from server.responses.wishes import refuse_wishes, truncated, wants_logprobs

MAX_ITEMS = 2 * MAX_MESSAGES
"""Thoughts, calls and what is said join in one message."""
STORED = "this server keeps nothing between requests; send the whole conversation as input"
STATEFUL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "store": (False,),
    "conversation": (),
    "background": (False,),
    "prompt": (),
}
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "max_tool_calls": (),
    "n": (1,),
    "moderation": (),
    "image": (),
    "access_programs": ([],),
    "context_management": ([],),
}


class ResponsesRequest(Body):
    """POST /v1/responses"""

    input: Annotated[str | JsonObjects, counted("input", MAX_ITEMS, "items")]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: JsonObjects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = Field(None, description="without effect")
    metadata: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: Logprobs | None = None
    truncation: str | None = None

    def toolbox(self) -> Toolbox:
        """What `tools` hold. Raises RequestError for what isn't offered."""
        return Toolbox.of(self.tools)

    def chat(self) -> ChatRequest:
        """The same as a chat. Raises RequestError for what isn't offered."""
        extra = self.model_extra or {}
        refuse(extra, STATEFUL, STORED)
        refuse(extra, NOT_OFFERED, "isn't offered by this server")
        refuse_wishes(self.include or (), self.text or {}, self.reasoning or {})
        tools, choice = self.toolbox().chosen(self.tool_choice)
        fields = {
            "model": self.model,
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tools": tools or None,
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": _format((self.text or {}).get("format")),
            "stream": self.stream,
            "reasoning": {"effort": (self.reasoning or {}).get("effort")},
            "truncate_prompt_tokens": truncated(self.truncation),
        }
        if wants_logprobs(self.include or (), self.top_logprobs):
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return chat_request(fields, self)

    def _messages(self) -> list[Json]:
        history = History()
        if self.instructions:
            history.messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*history.messages, {"role": "user", "content": self.input}]
        for position, item in enumerate(self.input):
            history.add(item, f"input[{position}]")
        return history.messages


def _format(wanted: Any) -> Json | None:
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": wanted}
    if wanted is not None and not isinstance(wanted, dict):
        raise RequestError(f"text.format must be an object, not {cited(wanted)}", "text.format")
    return wanted
