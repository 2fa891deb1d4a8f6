"""The fields with which a request asks for an answer of a certain shape."""

from dataclasses import dataclass
from typing import Any

from megainfer.errors import RequestError, cited
from megainfer.structured import grammar as grammars
from megainfer.structured.constraint import KINDS, constraint
from megainfer.structured.grammar import Grammar

NAMED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "grammar": "grammar",
    "regex": "regex",
    "ebnf": "grammar",
}
"""Fields that hold one wish: vLLM's older ones, llama.cpp's and SGLang's."""
IGNORED = frozenset({"disable_fallback"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """A grammar and the field that asked for it."""

    grammar: Grammar
    param: str


def wanted_shape(fields: dict[str, Any]) -> Wanted | None:
    """What `response_format`, `structured_outputs` and other names of theirs ask for.

    Raises RequestError for a field that is wrong, or when more than one asks for something.
    """
    wanted = [
        *_from_response_format(fields.get("response_format")),
        *_from_structured_outputs(fields.get("structured_outputs")),
        *(
            _wanted(kind, fields[name], name)
            for name, kind in NAMED.items()
            if fields.get(name) is not None
        ),
        *_from_format(fields.get("format")),
    ]
    if len(wanted) > 1:
        both = " and ".join(one.param for one in wanted)
        raise RequestError(f"{both} exclude each other; leave all but one out", wanted[1].param)
    return wanted[0] if wanted else None


def _from_response_format(value: Any) -> list[Wanted]:
    param = "response_format"
    kind = value.get("type") if isinstance(value, dict) else value
    if kind is None or kind == "text":
        return []
    if kind == "json_object":
        return [_wanted_object(value.get("schema"), f"{param}.schema", param)]
    if isinstance(kind, str) and kind in KINDS_OF_FORMAT:
        where = f"{param}.{KINDS_OF_FORMAT[kind]}"
        return [_wanted(kind, value.get(KINDS_OF_FORMAT[kind]), where)]
    if kind != "json_schema":
        known = "text, json_object, json_schema, regex or grammar"
        raise RequestError(f"{param}.type must be {known}, not {cited(kind)}", param)
    described, where = value.get("json_schema"), f"{param}.json_schema"
    if described is None and "schema" in value:
        described, where = value, param
    if not isinstance(described, dict) or "schema" not in described:
        raise RequestError(f"{param}.json_schema must hold a schema", f"{param}.json_schema")
    where = f"{where}.schema"
    return [Wanted(grammars.json_schema(described["schema"], where), where)]


KINDS_OF_FORMAT = {"regex": "pattern", "grammar": "grammar"}
"""Together's and Fireworks' types of `response_format`, and the field that holds the wish."""


def _from_format(value: Any) -> list[Wanted]:
    """Ollama's: `json`, or a schema."""
    if value in (None, ""):
        return []
    if isinstance(value, str) and value != "json":
        raise RequestError(f'format must be "json" or a JSON schema, not {cited(value)}', "format")
    return [_wanted_object(None if value == "json" else value, "format", "format")]


def _wanted_object(schema: Any, where: str, param: str) -> Wanted:
    """Any JSON object, or what a schema beside that says."""
    if schema is None:
        return Wanted(grammars.json_object(), param)
    return Wanted(grammars.json_schema(schema, where), where)


def _from_structured_outputs(value: Any) -> list[Wanted]:
    param = "structured_outputs"
    if value is None:
        return []
    if not isinstance(value, dict):
        raise RequestError(f"{param} must be an object, not {cited(value)}", param)
    given = {k: v for k, v in value.items() if v not in (None, False) and k not in IGNORED}
    if unknown := given.keys() - {*KINDS}:
        name = sorted(unknown)[0]
        known = ", ".join(KINDS)
        raise RequestError(f"{param}.{name} isn't offered; known: {known}", f"{param}.{name}")
    return [_wanted(kind, inner, f"{param}.{kind}") for kind, inner in given.items()]


def _wanted(kind: str, value: Any, param: str) -> Wanted:
    return Wanted(constraint(kind, value, param), param)
