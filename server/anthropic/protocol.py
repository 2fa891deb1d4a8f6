"""The body of POST /v1/messages, and the chat that it asks for."""

import json
from typing import Annotated, Any

from pydantic import Field

from megainfer.errors import RequestError, cited
from server.openai.protocol import Body, ChatRequest, Integer, JsonObjects
from server.openai.translation import Json, chat_request, refuse, text_of

NOT_OFFERED: dict[str, tuple[Any, ...]] = {"container": (), "mcp_servers": ([],), "n": (1,)}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class CountRequest(Body):
    """POST /v1/messages/count_tokens"""

    messages: Annotated[JsonObjects, Field(min_length=1)]
    model: str | None = None
    system: str | JsonObjects | None = None
    tools: JsonObjects | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat. Raises RequestError for what isn't offered."""
        refuse(self.model_extra or {}, NOT_OFFERED, "isn't offered by this server")
        return chat_request(self.chat_fields(), self)

    def chat_fields(self) -> Json:
        choice = self.tool_choice or {}
        return {
            "model": self.model,
            "messages": self._messages(),
            "tools": self.tools and [_tool(tool) for tool in self.tools],
            "tool_choice": self.tool_choice and _tool_choice(self.tool_choice),
            "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") else None,
            "chat_template_kwargs": self.thinking and _thinking(self.thinking),
        }

    def _messages(self) -> list[Json]:
        messages: list[Json] = []
        if self.system:
            system = text_of(self.system, ("text",), "system")
            messages.append({"role": "system", "content": system})
        for position, message in enumerate(self.messages):
            messages += _chat_messages(message, f"messages[{position}]")
        return messages


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


def _chat_messages(message: Json, where: str) -> list[Json]:
    """One message; results of tools are messages of their own, before what the user adds."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise RequestError(f"{where}.role must be user or assistant, not {cited(role)}", where)
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise RequestError(f"{where}.content must be a string or a list of blocks", where)
    results, rest = _apart(content, "tool_result")
    messages = [_result(block, where) for block in results]
    if rest or not messages:
        messages.append(_spoken(role, rest, where))
    return messages


def _spoken(role: str, blocks: list[Json], where: str) -> Json:
    calls, rest = _apart(blocks, "tool_use")
    thoughts, rest = _apart(rest, "thinking")
    texts = [block for block in rest if block.get("type") != "redacted_thinking"]
    message: Json = {"role": role, "content": text_of(texts, ("text",), f"{where}.content")}
    if calls:
        message["tool_calls"] = [_call(block) for block in calls]
    if thoughts:
        message["reasoning"] = "".join(str(block.get("thinking", "")) for block in thoughts)
    return message


def _apart(blocks: list[Json], kind: str) -> tuple[list[Json], list[Json]]:
    chosen = [block for block in blocks if block.get("type") == kind]
    return chosen, [block for block in blocks if block.get("type") != kind]


def _result(block: Json, where: str) -> Json:
    text = text_of(block.get("content") or "", ("text",), f"{where}.content")
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}


def _call(block: Json) -> Json:
    function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
    return {"id": block.get("id"), "type": "function", "function": function}


def _tool(tool: Json) -> Json:
    if "input_schema" not in tool:
        message = f"tools: only those with an input_schema are offered, not {cited(tool)}"
        raise RequestError(message, "tools")
    function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
    if "description" in tool:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _tool_choice(choice: Json) -> str | Json:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if not isinstance(kind, str) or kind not in CHOICES:
        known = ", ".join((*CHOICES, "tool"))
        raise RequestError(
            f"tool_choice.type must be one of {known}, not {cited(kind)}", "tool_choice"
        )
    return CHOICES[kind]


def _thinking(wanted: Json) -> Json:
    return {"enable_thinking": wanted.get("type") != "disabled"}
