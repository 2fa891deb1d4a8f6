"""A message's content, thoughts and calls, in whatever form a client sends them back."""

import json
from collections.abc import Mapping
from typing import Any

from megainfer.errors import RequestError, cited
from server.parsing.call_arguments import repaired

Json = dict[str, Any]
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Parts that are text, by their types: where it stands."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The names under which templates and clients know an answer's thoughts."""


def join_content(value: Any) -> str | None:
    """A message's text; parts are joined by line ends, as vLLM does for templates of strings.

    Raises ValueError for what isn't text.
    """
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"must be a string or a list of text parts, not {cited(value)}")
    return "\n".join(_part_text(part) for part in value)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(TEXTS[kind]) if isinstance(kind, str) and kind in TEXTS else None
    if not isinstance(text, str):
        raise ValueError(
            f'only parts {{"type": "text", "text": "..."}} are offered, not {cited(part)}'
        )
    return text


def with_thoughts(fields: Json) -> Json:
    """Under every name that templates have for them."""
    given = (fields.get(name) for name in THOUGHTS)
    thought = next((text for text in given if isinstance(text, str) and text), None)
    rest = {key: value for key, value in fields.items() if key not in THOUGHTS}
    return rest if thought is None else {**rest, **dict.fromkeys(THOUGHTS, thought)}


def template_call(call: Any) -> Json:
    """A call, its arguments a JSON text of an object, however badly a model wrote them.

    Raises RequestError for what has no name.
    """
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        where = "messages.tool_calls"
        raise RequestError(f"{where} must hold functions with names, not {cited(call)}", where)
    arguments = arguments_text(function.get("arguments"))
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def arguments_text(given: Any) -> str:
    """As it is where it spells an object."""
    if isinstance(given, Mapping):
        return json.dumps(given, ensure_ascii=False)
    if not isinstance(given, str):
        return "{}"
    try:
        spelled = json.loads(given)
    except (ValueError, RecursionError):
        return repaired(given)
    return given if isinstance(spelled, dict) else repaired(given)
