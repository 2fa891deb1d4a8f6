"""Arguments of calls that are written as texts; what else they stand for, a schema says."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.parsing.parts import Call
from server.parsing.spans import as_call

Json = dict[str, Any]


class Schemas:
    """Of the parameters of some tools."""

    def __init__(self, tools: Sequence[Json]) -> None:
        self._known = {tool["function"]["name"]: _properties(tool["function"]) for tool in tools}

    def call(self, name: str, texts: Iterable[tuple[str, str]]) -> Call:
        """The call with these arguments. Raises ValueError for what JSON doesn't have."""
        properties = self._known.get(name, {})
        return as_call(name, {key: _value(text, properties.get(key)) for key, text in texts})


def _properties(function: Json) -> Mapping[str, Any]:
    """Of a tool as its user gave it; nobody has checked the schema so far."""
    properties = (function.get("parameters") or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


def _value(text: str, schema: Any) -> Any:
    if not isinstance(schema, dict) or schema.get("type") == "string":
        return text
    value = json_value(text)
    return text if isinstance(value, str) else value  # quotes are the text's own


def json_value(text: str) -> Any:
    """What it spells, or itself."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} isn't JSON")
