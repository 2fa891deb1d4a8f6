"""Grammars from what a user gives, by the names that vLLM has for the kinds."""

from collections.abc import Callable
from typing import Any

from megainfer.errors import RequestError, cited
from megainfer.structured import grammar as grammars
from megainfer.structured.grammar import Grammar
from megainfer.text.json_text import parse_object

MAX_CHOICES = 1024


def constraint(kind: str, value: Any, param: str) -> Grammar:
    """kind: one of KINDS. Raises RequestError naming `param`."""
    return _BUILDERS[kind](value, param)


def _json(value: Any, param: str) -> Grammar:
    if isinstance(value, str):
        value = parse_object(value, param)
    return grammars.json_schema(value, param)


def _json_object(value: Any, param: str) -> Grammar:
    return grammars.json_object()


def _regex(value: Any, param: str) -> Grammar:
    return grammars.regex(_text(value, param), param)


def _grammar(value: Any, param: str) -> Grammar:
    return grammars.lark(_text(value, param), param)


def _choice(value: Any, param: str) -> Grammar:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RequestError(f"{param} must be a list of strings, not {cited(value)}", param)
    if len(value) > MAX_CHOICES:
        raise RequestError(f"{param} holds {len(value)} texts; at most {MAX_CHOICES} may be", param)
    return grammars.choice(value, param)


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{param} must be a string, not {cited(value)}", param)
    return value


_BUILDERS: dict[str, Callable[[Any, str], Grammar]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
KINDS = tuple(_BUILDERS)
