"""The messages of /v1/messages as those of a chat."""

import json
import re
from collections.abc import Iterable
from typing import Any

from megainfer.errors import RequestError, cited
from server.history.texts import text_of
from server.openai.translation import Json

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
SILENT = re.compile(r".*_tool_result|server_tool_use|mcp_tool_use|redacted_thinking|compaction")
"""Blocks of what happened on Anthropic's servers, of which the text beside them tells."""
RESULT = "tool_result"
PICTURES = ("image", "document", "file")
BILLING = re.compile(r"\A\s*x-anthropic-billing-header:[^\n]*\n?")
"""Claude Code's first line of a system prompt: another in each request, so that no two would have a
beginning in common."""


def chat_messages(system: Any, messages: Iterable[Json]) -> list[Json]:
    """Raises RequestError for what isn't offered."""
    made: list[Json] = []
    if text := _system(system):
        made.append({"role": "system", "content": text})
    for position, message in enumerate(messages):
        made += _chat_messages(message, f"messages[{position}]")
    return made


def continues(messages: list[Json]) -> bool:
    """Whether the assistant has begun to speak, and is to go on."""
    last = messages[-1] if messages else {}
    return (
        last.get("role") == "assistant"
        and bool(last["content"].strip())
        and "tool_calls" not in last
    )


def _system(given: Any) -> str:
    blocks = given if isinstance(given, list) else [given]
    texts = [BILLING.sub("", text_of([block], "system")) for block in blocks if block is not None]
    return "\n".join(text for text in texts if text)


def _chat_messages(message: Json, where: str) -> list[Json]:
    """One message; results of tools are messages of their own, before what the user adds."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise RequestError(f"{where}.role must be one of {known}, not {cited(role)}", where)
    role = ROLES[role]
    if role == "system" and content is not None:
        return [{"role": role, "content": _system(content)}]
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise RequestError(f"{where}.content must be a string or a list of blocks", where)
    messages = [_result(block, where) for block in content if block.get("type") == RESULT]
    if not messages or len(messages) < len(content):
        messages.append(_spoken(role, content, where))
    return messages


def _spoken(role: str, blocks: list[Json], where: str) -> Json:
    """What a message says itself. There may be very many blocks: each is looked at once."""
    texts: list[Json] = []
    calls: list[Json] = []
    thoughts: list[str] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            texts.append(block)
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind != RESULT and not SILENT.fullmatch(str(kind)):
            texts.append(_plain(block, f"{where}.content"))
    message: Json = {"role": role, "content": text_of(texts, f"{where}.content")}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning"] = "".join(thoughts)
    return message


def _plain(block: Json, where: str) -> Json:
    """A document that is a text, and what a search found, are texts."""
    source = block.get("source")
    if block.get("type") == "document" and isinstance(source, dict) and "data" in source:
        if source.get("type") == "text":
            return {"type": "text", "text": source["data"]}
    elif block.get("type") == "search_result":
        found = text_of(block.get("content"), where)
        return {"type": "text", "text": f"{block.get('title', '')}\n{found}"}
    return block


def _result(block: Json, where: str) -> Json:
    content = block.get("content") or ""
    if isinstance(content, list):
        content = [_plain(p, where) if isinstance(p, dict) else p for p in content]
    text = text_of(content, f"{where}.content", left_out=PICTURES)
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}


def _call(block: Json) -> Json:
    arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}
