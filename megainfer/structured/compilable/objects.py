"""Keywords about the members of objects."""

import re
from typing import Any

from megainfer.errors import cited
from megainfer.structured.compilable.place import WORDS, Node, Place, Schema, names_in, without

APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref")
"""Keywords that apply other schemas to the same value."""


def with_named_members(node: Node, place: Place) -> Node:
    """`propertyNames` as properties or as a pattern, where it says something."""
    names = place.followed(node.get("propertyNames", True))
    rest = without(node, "propertyNames")
    if _allows_every_name(names):
        return rest
    if rest.get("properties") or rest.get("patternProperties") or _is_applied(rest):
        raise place.fail("propertyNames", "isn't offered beside what names or describes properties")
    members = rest.get("additionalProperties", True)
    return {**rest, **_named(names, members, place), "additionalProperties": False}


def _named(names: Any, members: Schema, place: Place) -> Node:
    """What the names say of the object, instead of `additionalProperties`."""
    said = {} if names is False else without(names, "type", *WORDS)
    match said:
        case {"enum": list(listed), **rest} if not rest:
            return {"properties": {name: members for name in listed if isinstance(name, str)}}
        case {"const": str(name), **rest} if not rest:
            return {"properties": {name: members}}
        case {"pattern": str(pattern), **rest} if not rest:
            return {"patternProperties": {pattern: members}}
        case {**rest} if not rest:
            return {"properties": {}}
    why = "is offered with an enum, a const or a pattern of names only"
    raise place.fail("propertyNames", why)


def _allows_every_name(names: Any) -> bool:
    if isinstance(names, dict):
        kinds = names.get("type", "string")
        of_strings = "string" in (kinds if isinstance(kinds, list) else [kinds])
        names = of_strings and not without(names, "type", *WORDS)
    return names is True


def with_patterns_applied(node: Node, place: Place) -> Node:
    """Named properties obey the patterns that their names match as well."""
    properties, patterns = node.get("properties"), node.get("patternProperties")
    if not (isinstance(properties, dict) and isinstance(patterns, dict) and patterns):
        return node
    both: dict[str, Any] = {}
    for name, own in properties.items():
        more = [schema for pattern, schema in patterns.items() if _matches(pattern, name, place)]
        both[name] = {"allOf": [own, *more]} if more else own
    # The library fails midway at a pattern that has no other names left.
    left = {
        pattern: schema for pattern, schema in patterns.items() if not _is_used_up(pattern, both)
    }
    return {**node, "properties": both, "patternProperties": left}


def _is_used_up(pattern: str, names: Node) -> bool:
    """Whether it is a list of names, all of them these."""
    listed = NAMES.fullmatch(pattern)
    return listed is not None and {*(listed[1] or listed[2]).split("|")} <= names.keys()


NAMES = re.compile(r"\^(?:([\w-]+)|\((?:\?:)?([\w-]+(?:\|[\w-]+)*)\))\$")
"""As `^a$` or `^(a|b)$`."""


def _matches(pattern: str, name: str, place: Place) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        why = f"{cited(pattern)} may match the property {cited(name)}; leave one of them out"
        raise place.fail("patternProperties", why) from error


def without_known_dependents(node: Node, place: Place) -> Node:
    """`dependentRequired` says nothing where what it asks for is required anyway."""
    wanted = node.get("dependentRequired", {})
    required = {*names_in(node.get("required"))}
    if not isinstance(wanted, dict) or any(
        not {*names_in(more)} <= required for more in wanted.values()
    ):
        raise place.fail("dependentRequired", "isn't offered; require the properties, or use anyOf")
    return without(node, "dependentRequired")


def without_known_counts(node: Node, place: Place) -> Node:
    """`minProperties` and `maxProperties` say nothing where they hold anyway."""
    least, most = node.get("minProperties"), node.get("maxProperties")
    required = len({*names_in(node.get("required"))})
    if isinstance(least, int) and least <= required:
        node = without(node, "minProperties")
    elif isinstance(least, int) and least > required + 1:  # the library lets a name come twice
        why = "may be at most one more than there are required properties"
        raise place.fail("minProperties", why)
    closed = node.get("additionalProperties") is False and not node.get("patternProperties")
    known = node.get("properties", {})
    if isinstance(most, int) and closed and isinstance(known, dict) and len(known) <= most:
        node = without(node, "maxProperties")
    return node


def with_evaluated(node: Node, place: Place) -> Node:
    """`unevaluatedProperties` and `unevaluatedItems` as what they mean without applicators."""
    for name, other in (
        ("unevaluatedProperties", "additionalProperties"),
        ("unevaluatedItems", "items"),
    ):
        said = node.get(name, True)
        node = without(node, name)
        if said in (True, {}) or other in node:
            continue
        if _is_applied(node):
            raise place.fail(name, f"isn't offered beside {' or '.join(APPLICATORS)}; use {other}")
        node[other] = said
    return node


def _is_applied(node: Node) -> bool:
    return any(name in node for name in APPLICATORS)
