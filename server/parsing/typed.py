"""Arguments of calls that are written as texts; what else they stand for, a schema says."""

import json
from typing import Any

from megainfer.structured.schema import SchemaReader, kinds_of

PYTHONS = {"True": True, "False": False, "None": None}
"""Templates that write values as Python does (Qwen3-Coder's) teach models to do so."""


def is_plainly_text(schema: SchemaReader, key: str) -> bool:
    """Whether whatever is written is the value."""
    member = schema.member(schema.root, key)
    return not isinstance(member, dict) or schema.kinds(member) == {"string"}


def typed_value(text: str, schema: SchemaReader, key: str) -> Any:
    """What a text stands for."""
    if is_plainly_text(schema, key):
        return text
    kinds = schema.kinds(schema.member(schema.root, key))
    spelled = text.strip()
    value = json_value(spelled)
    if spelled in PYTHONS and "string" not in kinds and kinds & kinds_of(PYTHONS[spelled]):
        value = PYTHONS[spelled]
    # Quotes are the text's own; and what may be a text is one, unless it is another kind allowed.
    is_text = isinstance(value, str) or ("string" in kinds and not kinds & kinds_of(value))
    return text if is_text else value


def json_value(text: str) -> Any:
    """What it spells, or itself."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value


def as_json(value: Any) -> str:
    """Half characters become unknown ones: they can't be sent."""
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} isn't JSON")
