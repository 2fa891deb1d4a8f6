"""The items of /v1/responses as the messages of a chat."""

import base64
import binascii
import json
from typing import Any

from megainfer.errors import RequestError, cited
from server.history.texts import text_of
from server.openai.translation import Json
from server.responses.tools import INPUT, SHELL, full_name

PICTURES = ("input_image", "input_file", "computer_screenshot")
SILENT = frozenset(
    {
        *("web_search_call", "file_search_call", "image_generation_call", "code_interpreter_call"),
        *("mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "tool_search_call"),
        *("tool_search_output", "compaction", "compaction_summary", "ghost_snapshot"),
        *("additional_tools", "context_compaction"),
    }
)
"""Items of what happened on OpenAI's servers, or in a client alone; the text beside them tells."""
OUTPUTS = frozenset(
    {
        *("function_call_output", "custom_tool_call_output", "local_shell_call_output"),
        *("shell_call_output", "computer_call_output", "apply_patch_call_output"),
    }
)
SEALED = "megainfer:"
"""Before thoughts that a client carries from turn to turn without reading them."""


class History:
    """Messages, made item by item."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self._thoughts: list[str] = []  # of what the assistant is about to say

    def add(self, item: Json, where: str) -> None:
        """Calls join the assistant's message before them, as a chat has them. Raises RequestError
        for an item that isn't offered."""
        kind = item.get("type") or "message"
        if not isinstance(kind, str):
            raise RequestError(f"{where}.type must be a string, not {cited(kind)}", where)
        for name in ("call_id", "id"):
            if not isinstance(item.get(name), str | None):
                raise RequestError(
                    f"{where}.{name} must be a string, not {cited(item[name])}", where
                )
        if kind == "message":
            self._say(item, where)
        elif kind == "reasoning":
            self._thoughts.append(_thought(item, where))
        elif kind in OUTPUTS:
            text = _output(item.get("output"), f"{where}.output")
            call_id = item.get("call_id") or item.get("id")
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        elif (call := _call(item)) is not None:
            self._assistant().setdefault("tool_calls", []).append(call)
            if kind == "mcp_call" and isinstance(output := item.get("output"), str):
                result = {"role": "tool", "tool_call_id": call["id"], "content": output}
                self.messages.append(result)
        elif kind not in SILENT:
            raise RequestError(f"{where}: items of type {cited(kind)} aren't offered", where)

    def _say(self, item: Json, where: str) -> None:
        role = item.get("role")
        left_out = PICTURES if role in ("tool", "assistant") else ()
        text = text_of(item.get("content"), f"{where}.content", left_out)
        self.messages.append({"role": role, "content": text})
        if role == "assistant":
            self._think()

    def _assistant(self) -> Json:
        """The message that a call belongs to. Thoughts between calls begin another."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or (self._thoughts and "tool_calls" in last):
            self.messages.append({"role": "assistant", "content": ""})
        self._think()
        return self.messages[-1]

    def _think(self) -> None:
        if thoughts := [thought for thought in self._thoughts if thought]:
            self.messages[-1]["reasoning"] = "\n".join(thoughts)
        self._thoughts = []


def sealed(thoughts: str) -> str:
    """Thoughts as a client carries them."""
    return SEALED + base64.b64encode(thoughts.encode(errors="replace")).decode()


def _thought(item: Json, where: str) -> str:
    text = text_of(item.get("content"), f"{where}.content")
    return text or _unsealed(item.get("encrypted_content")) or text_of(item.get("summary"), where)


def _unsealed(given: Any) -> str:
    """Empty for what another server has sealed."""
    if not isinstance(given, str) or not given.startswith(SEALED):
        return ""
    try:
        return base64.b64decode(given.removeprefix(SEALED), validate=True).decode(errors="replace")
    except (ValueError, binascii.Error):
        return ""


def _call(item: Json) -> Json | None:
    match item.get("type"):
        case "function_call" | "mcp_call":
            name, arguments = full_name(item), item.get("arguments")
        case "custom_tool_call":
            name, arguments = full_name(item), {INPUT: item.get("input")}
        case "local_shell_call" | "shell_call":
            name, arguments = SHELL, item.get("action")
        case _:
            return None
    if isinstance(arguments, dict):
        kept = {k: v for k, v in arguments.items() if v not in (None, {}) and k != "type"}
        arguments = json.dumps(kept, ensure_ascii=False)
    call_id = item.get("call_id") or item.get("id")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _output(given: Any, where: str) -> str:
    """Of a tool: a text, parts, or what else a client has made of it."""
    if isinstance(given, dict):
        return json.dumps(given, ensure_ascii=False)
    return text_of(given, where, PICTURES)
