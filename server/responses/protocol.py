"""The body of POST /v1/responses, and the chat that it asks for."""

from typing import Any

from megainfer.errors import RequestError, cited
from server.openai.protocol import EFFORT, Body, ChatRequest, Integer, JsonObjects
from server.openai.translation import Json, chat_request, refuse, text_of

STORED = "this server keeps nothing between requests; send the whole conversation as input"
STATEFUL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "store": (False,),
    "conversation": (),
    "background": (False,),
    "prompt": (),
}
NOT_OFFERED: dict[str, tuple[Any, ...]] = {"top_logprobs": (0,), "max_tool_calls": (), "n": (1,)}
TEXT_PARTS = ("input_text", "output_text", "text")


class ResponsesRequest(Body):
    """POST /v1/responses"""

    input: str | JsonObjects
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
    metadata: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat. Raises RequestError for what isn't offered."""
        extra = self.model_extra or {}
        refuse(extra, STATEFUL, STORED)
        refuse(extra, NOT_OFFERED, "isn't offered by this server")
        fields = {
            "model": self.model,
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tools": self.tools and [_tool(tool) for tool in self.tools],
            "tool_choice": _tool_choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": _format((self.text or {}).get("format")),
            "stream": self.stream,
            EFFORT: (self.reasoning or {}).get("effort"),
        }
        return chat_request(fields, self)

    def _messages(self) -> list[Json]:
        messages: list[Json] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for position, item in enumerate(self.input):
            _add_item(messages, item, f"input[{position}]")
        return messages


def _add_item(messages: list[Json], item: Json, where: str) -> None:
    """Calls join the assistant's message before them, as a chat has them."""
    match item.get("type", "message"):
        case "message":
            text = text_of(item.get("content"), TEXT_PARTS, f"{where}.content")
            messages.append({"role": item.get("role"), "content": text})
        case "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        case "function_call_output":
            text = text_of(item.get("output"), TEXT_PARTS, f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        case "reasoning":
            return  # a template shows at most the latest, and that only between calls
        case other:
            raise RequestError(f"{where}: items of type {cited(other)} aren't offered", where)


def _tool(tool: Json) -> Json:
    if tool.get("type") != "function":
        kind = tool.get("type")
        raise RequestError(f"tools: only functions are offered, not {cited(kind)}", "tools")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _tool_choice(choice: str | Json | None) -> str | Json | None:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(wanted: Any) -> Json | None:
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": wanted}
    if wanted is not None and not isinstance(wanted, dict):
        raise RequestError(f"text.format must be an object, not {cited(wanted)}", "text.format")
    return wanted
