"""Qwen3-Coder's calls: a `<tool_call>` around `<function=f>`, around `<parameter=x>`s."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.parsing.parts import Call
from server.parsing.spans import as_call

Json = dict[str, Any]
OPENING, CLOSING = "<tool_call>", "</tool_call>"
PARAMETER = r"<parameter=([^<>\s]{1,128})>(.*?)</parameter>"
FUNCTION = re.compile(r"\s*<function=([^<>\s]{1,128})>(.*?)</function>\s*", re.DOTALL)
ONE_PARAMETER = re.compile(PARAMETER, re.DOTALL)


def qwen3_coder_reader(tools: Sequence[Json]) -> Callable[[str], list[Call] | None]:
    """A reader of spans. Values are texts; what else one stands for, the tool's schema says."""
    known = {tool["function"]["name"]: _properties(tool["function"]) for tool in tools}

    def read(span: str) -> list[Call] | None:
        found = FUNCTION.fullmatch(span.removeprefix(OPENING).removesuffix(CLOSING))
        if found is None:
            return None
        arguments = _arguments(found[2], known.get(found[1], {}))
        return None if arguments is None else _calls(found[1], arguments)

    return read


def _properties(function: Json) -> Mapping[str, Any]:
    """Of a tool as its user gave it; nobody has checked the schema so far."""
    properties = (function.get("parameters") or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


def _calls(name: str, arguments: Json) -> list[Call] | None:
    try:
        return [as_call(name, arguments)]
    except ValueError:
        return None


def _arguments(body: str, properties: Mapping[str, Any]) -> Json | None:
    if ONE_PARAMETER.sub("", body).strip():
        return None
    pairs = (found.groups() for found in ONE_PARAMETER.finditer(body))
    return {name: _value(text, properties.get(name)) for name, text in pairs}


def _value(text: str, schema: Any) -> Any:
    """One line end at either side belongs to the notation."""
    text = text.removeprefix("\n").removesuffix("\n")
    if not isinstance(schema, dict) or schema.get("type") == "string":
        return text
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value  # quotes are the text's own


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} isn't JSON")
