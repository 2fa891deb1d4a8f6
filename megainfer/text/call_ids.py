"""Ids of tool calls, in the forms that some models' templates want."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

NINE = re.compile(r"[a-zA-Z0-9]{9}")
NUMBERED = re.compile(r"(?:functions\.)?.+:\d+")


def nine_letters(given: str) -> str:
    """Mistral's are nine letters and digits; other ids become such, equal ones the same."""
    if NINE.fullmatch(given):
        return given
    return hashlib.sha256(given.encode(errors="replace")).hexdigest()[:9]


def numbered(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Kimi's are a function's name and the call's number in the chat. What other ids become."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    ids = [str(call.get("id") or "") for call in calls]
    return {
        given: f"functions.{call['function']['name']}:{number}"
        for number, (given, call) in enumerate(zip(ids, calls, strict=True))
        if not NUMBERED.fullmatch(given)
    }
