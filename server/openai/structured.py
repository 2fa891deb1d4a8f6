"""The fields with which a request asks for an answer of a certain shape."""

from dataclasses import dataclass
from typing import Any

from megainfer.errors import RequestError, cited
from megainfer.structured import grammar as grammars
from megainfer.structured.constraint import KINDS, constraint
from megainfer.structured.grammar import Grammar

LEGACY = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
IGNORED = frozenset({"disable_any_whitespace", "disable_additional_properties", "disable_fallback"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """A grammar and the field that asked for it."""

    grammar: Grammar
    param: str


def wanted_shape(fields: dict[str, Any]) -> Wanted | None:
    """What `response_format`, `structured_outputs` and their older names ask for.

    Raises RequestError for a field that is wrong, or when more than one asks for something.
    """
    wanted = [
        *_from_response_format(fields.get("response_format")),
        *_from_structured_outputs(fields.get("structured_outputs")),
        *(
            _wanted(kind, fields[name], name)
            for name, kind in LEGACY.items()
            if fields.get(name) is not None
        ),
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
        return [Wanted(grammars.json_object(), param)]
    if kind != "json_schema":
        known = "text, json_object or json_schema"
        raise RequestError(f"{param}.type must be {known}, not {cited(kind)}", param)
    described = value.get("json_schema")
    if not isinstance(described, dict) or "schema" not in described:
        raise RequestError(f"{param}.json_schema must hold a schema", f"{param}.json_schema")
    where = f"{param}.json_schema.schema"
    return [Wanted(grammars.json_schema(described["schema"], where), where)]


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
