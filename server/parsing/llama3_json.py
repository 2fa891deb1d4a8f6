"""Llama 3's calls: `{"name": "f", "parameters": {...}}`, several with semicolons between them."""

import json

from server.parsing.parts import Call
from server.parsing.spans import as_call


def read_llama3_json(span: str) -> list[Call] | None:
    """The call of one object."""
    try:
        value = json.loads(span)
        name, arguments = value["name"], value.get("parameters", value.get("arguments"))
        if isinstance(name, str) and name and isinstance(arguments, dict):
            return [as_call(name, arguments)]
    except (ValueError, KeyError, RecursionError):
        return None
    return None
