"""Arguments of calls that are written as texts; what else they stand for, a schema says."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from megainfer.structured.schema import SchemaReader, kinds_of
from server.parsing.parts import Call
from server.parsing.spans import as_call

Json = dict[str, Any]
PYTHONS = {"True": True, "False": False, "None": None}
"""Templates that write values as Python does (Qwen3-Coder's) teach models to do so."""


class Schemas:
    """Of the parameters of some tools."""

    def __init__(self, tools: Sequence[Json]) -> None:
        functions = [tool["function"] for tool in tools]
        self._known = {f["name"]: SchemaReader(f.get("parameters")) for f in functions}

    def call(self, name: str, texts: Iterable[tuple[str, str]]) -> Call:
        """The call with these arguments. Raises ValueError for what JSON doesn't have."""
        schema = self._known.get(name, SchemaReader(None))
        return as_call(name, {key: _value(text, schema, key) for key, text in texts})


def _value(text: str, schema: SchemaReader, key: str) -> Any:
    member = schema.member(schema.root, key)
    kinds = schema.kinds(member)
    if not isinstance(member, dict) or kinds == {"string"}:
        return text
    value = json_value(text)
    if text in PYTHONS and "string" not in kinds and kinds & kinds_of(PYTHONS[text]):
        value = PYTHONS[text]
    # Quotes are the text's own; and what may be a text is one, unless it is another kind allowed.
    is_text = isinstance(value, str) or ("string" in kinds and not kinds & kinds_of(value))
    return text if is_text else value


def json_value(text: str) -> Any:
    """What it spells, or itself."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} isn't JSON")
