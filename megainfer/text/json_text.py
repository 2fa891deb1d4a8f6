"""JSON inside of a text that somebody gave."""

import json
from typing import Any

from megainfer.errors import RequestError, cited


def parse_object(text: str, param: str) -> dict[str, Any]:
    """The object that a text spells. Raises RequestError naming `param`."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{param} isn't valid JSON: {error}", param) from error
    if not isinstance(value, dict):
        raise RequestError(f"{param} must spell a JSON object, not {cited(text)}", param)
    return value
