"""Arguments of calls that are written as texts; what else they stand for, a schema says."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.parsing.parts import Call
from server.parsing.spans import as_call

Json = dict[str, Any]
PYTHONS = {"True": True, "False": False, "None": None}
"""Templates that write values as Python does (Qwen3-Coder's) teach models to do so."""


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
    kinds = _kinds(schema)
    if not isinstance(schema, dict) or kinds == {"string"}:
        return text
    value = json_value(text)
    if text in PYTHONS and "string" not in kinds and kinds & _kinds_of(PYTHONS[text]):
        value = PYTHONS[text]
    # Quotes are the text's own; and what may be a text is one, unless it is another kind allowed.
    is_text = isinstance(value, str) or ("string" in kinds and not kinds & _kinds_of(value))
    return text if is_text else value


def _kinds(schema: Any) -> set[str]:
    """The types that it names, as far as it says so itself."""
    if not isinstance(schema, dict):
        return set()
    own = schema.get("type", [])
    kinds = {kind for kind in (own if isinstance(own, list) else [own]) if isinstance(kind, str)}
    for key in ("anyOf", "oneOf"):
        parts = schema.get(key)
        for part in parts if isinstance(parts, list) else []:
            kinds |= _kinds(part)
    return kinds


def _kinds_of(value: Any) -> set[str]:
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case list():
            return {"array"}
    return {"object"}


def json_value(text: str) -> Any:
    """What it spells, or itself."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} isn't JSON")
