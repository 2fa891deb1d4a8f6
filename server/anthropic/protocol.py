"""The body of POST /v1/messages, and the chat that it asks for."""

from typing import Annotated, Any

from pydantic import Field

from server.anthropic.history import chat_messages, continues
from server.anthropic.tools import functions, tool_choice
from server.anthropic.wishes import (
    refuse_edits,
    wanted_effort,
    wanted_format,
    wanted_thinking,
)
from server.openai.protocol import MAX_MESSAGES, Body, ChatRequest
from server.openai.translation import Json, chat_request, refuse
from server.openai.wishes.values import Integer, JsonObjects, counted

NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "mcp_servers": ([],),
    "n": (1,),
    "compaction": (),
    "thread": (),
    "response_format": (),
}


class CountRequest(Body):
    """POST /v1/messages/count_tokens"""

    messages: Annotated[
        JsonObjects, Field(min_length=1), counted("messages", MAX_MESSAGES, "items")
    ]
    model: str | None = None
    system: str | JsonObjects | None = None
    tools: JsonObjects | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat. Raises RequestError for what isn't offered."""
        refuse(self.model_extra or {}, NOT_OFFERED, "isn't offered by this server")
        refuse_edits(self.context_management)
        return chat_request(self.chat_fields(), self)

    def chat_fields(self) -> Json:
        choice = self.tool_choice or {}
        messages = chat_messages(self.system, self.messages)
        return {
            "model": self.model,
            "messages": messages,
            "continue_final_message": continues(messages) or None,
            "tools": functions(self.tools),
            "tool_choice": tool_choice(self.tool_choice),
            "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") else None,
            "enable_thinking": wanted_thinking(self.thinking),
            "reasoning": {"effort": wanted_effort(self.output_config)},
            "response_format": wanted_format(self.output_config, self.output_format),
        }


class MessagesRequest(CountRequest):
    """POST /v1/messages"""

    max_tokens: Integer
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    stop_sequences: Annotated[list[str], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None

    def chat_fields(self) -> Json:
        return {
            **super().chat_fields(),
            "max_completion_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "stream": self.stream,
        }
