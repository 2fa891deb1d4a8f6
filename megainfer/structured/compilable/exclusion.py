"""Whether two schemas can't hold for one value: then `oneOf` is what `anyOf` is."""

from itertools import combinations
from typing import Any

from megainfer.structured.compilable.place import Node, Place, names_in, without
from megainfer.structured.schema import kinds_of

MAX_COMPARED = 64  # of the alternatives of one `oneOf`
DEPTH = 4  # of properties that tell them apart


def with_alternatives(node: Node, place: Place) -> Node:
    """`oneOf` as `anyOf` where its schemas exclude each other, which the library sees only in part:
    by types, by constants, or by a property that both require, the discriminator of a union."""
    options = node.get("oneOf")
    if not isinstance(options, list) or not 1 < len(options) <= MAX_COMPARED:
        return node
    if all(_exclude(a, b, place, DEPTH) for a, b in combinations(options, 2)):
        rest = without(node, "oneOf")
        if "anyOf" not in rest:
            return {**rest, "anyOf": options}
        if isinstance(together := rest.get("allOf", []), list):
            return {**rest, "allOf": [*together, {"anyOf": options}]}
    return node


def _exclude(one: Any, other: Any, place: Place, depth: int) -> bool:
    one, other = place.followed(one), place.followed(other)
    if one is False or other is False:
        return True
    kinds, others = place.reader.kinds(one), place.reader.kinds(other)
    if kinds and others and not kinds & others:
        return True
    values, other_values = _values(one), _values(other)
    if values is not None and other_values is not None:
        return not any(_same(a, b) for a in values for b in other_values)
    if depth == 0 or not (isinstance(one, dict) and isinstance(other, dict)):
        return False
    if kinds != {"object"} or others != {"object"}:
        return False
    required = {*names_in(one.get("required"))} & {*names_in(other.get("required"))}
    return any(
        _exclude(place.reader.member(one, name), place.reader.member(other, name), place, depth - 1)
        for name in required
    )


def _values(schema: Any) -> list[Any] | None:
    """All that it allows, where it lists them."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def _same(one: Any, other: Any) -> bool:
    """As JSON has it: true isn't 1."""
    return bool(one == other) and bool(kinds_of(one) & kinds_of(other))
