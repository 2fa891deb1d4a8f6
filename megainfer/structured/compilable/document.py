"""A whole schema, node by node."""

from collections.abc import Callable
from typing import Any

from megainfer.errors import RequestError, cited
from megainfer.structured.compilable.exclusion import with_alternatives
from megainfer.structured.compilable.keywords import (
    refuse_unknown,
    with_items,
    with_negation,
    without_circles,
    without_noops,
)
from megainfer.structured.compilable.numbers import BOUNDS, with_closed_bounds, with_numbers
from megainfer.structured.compilable.objects import (
    APPLICATORS,
    with_evaluated,
    with_named_members,
    with_patterns_applied,
    without_known_counts,
    without_known_dependents,
)
from megainfer.structured.compilable.place import Node, Place, Schema
from megainfer.structured.schema import SchemaReader

ONE = (
    "additionalProperties",
    "items",
    "unevaluatedProperties",
)
LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords that hold a schema, a list of schemas, or schemas by name."""

Rule = Callable[[Node, Place], Node]
RULES: tuple[Rule, ...] = (
    without_circles,
    without_noops,
    with_items,
    with_numbers,
    with_closed_bounds,
    with_evaluated,
    with_named_members,
    with_patterns_applied,
    without_known_dependents,
    without_known_counts,
    with_alternatives,
    refuse_unknown,
)


def compilable(schema: Schema) -> Node:
    """The schema as the library takes it. Raises RequestError naming the keyword and its place."""
    made = _prepared(schema, Place(SchemaReader(schema), merges=_merges(schema)))
    if made is False:
        raise RequestError("the schema allows nothing")
    return {} if made is True else made


def _prepared(schema: Any, place: Place) -> Schema:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise place.fail_here(f"must be a schema, an object or a boolean, not {cited(schema)}")
    node = with_negation(schema, place)
    if isinstance(node, bool):
        return node
    for rule in RULES:
        node = rule(node, place)
    return {name: _inside(name, value, place) for name, value in node.items()}


def _inside(name: str, value: Any, place: Place) -> Any:
    if name in ONE:
        return _prepared(value, place.inner(name))
    if name in LISTED and isinstance(value, list):
        return [_prepared(part, place.inner(name, i)) for i, part in enumerate(value)]
    if name in NAMED and isinstance(value, dict):
        return {key: _prepared(part, place.inner(name, key)) for key, part in value.items()}
    return value


def _merges(schema: Any) -> bool:
    """Whether bounds of several nodes may come to hold together."""
    if isinstance(schema, list):
        return any(map(_merges, schema))
    if not isinstance(schema, dict):
        return False
    own = {*schema}
    together = "allOf" in own or (own & {*BOUNDS} and own & {*APPLICATORS})
    return bool(together) or any(map(_merges, schema.values()))
