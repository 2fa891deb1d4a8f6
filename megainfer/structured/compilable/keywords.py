"""Keywords that demand nothing, and those that can't be obeyed."""

from typing import Any

from megainfer.structured.compilable.place import Node, Place, without
from megainfer.structured.schema import kinds_of

FORMATS = (
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"),
)
"""Those that are obeyed. By the standard a format nobody knows says nothing."""


def without_noops(node: Node, place: Place) -> Node:
    """Without keywords that hold for every value, and those that only speak of others."""
    if node.get("format") not in FORMATS:
        node = without(node, "format")
    if node.get("uniqueItems") is False or _is_at_most_one(node):
        node = without(node, "uniqueItems")
    if "contains" not in node or (node.get("minContains") == 0 and "maxContains" not in node):
        node = without(node, "contains", "minContains", "maxContains")
    if "if" not in node or not {"then", "else"} & {*node}:
        node = without(node, "if", "then", "else")
    for name in ("dependencies", "dependentSchemas"):
        if node.get(name) == {}:
            node = without(node, name)
    return without(node, "$schema", "contentSchema", "$vocabulary")


def without_circles(node: Node, place: Place) -> Node:
    """Raises RequestError where a value would have to be what it has to be, without end: the
    library compiles such a schema, and gives up where a text comes to it."""
    if place.reader.leads_back(node):
        raise place.fail_here("leads back to itself by $ref and says nothing of a value on the way")
    return node


def _is_at_most_one(node: Node) -> bool:
    most = node.get("maxItems")
    return isinstance(most, int) and most <= 1


def with_items(node: Node, place: Place) -> Node:
    """`items` as a list, as it was until 2019, by its name of today."""
    if isinstance(node.get("items"), list):
        rest = without(node, "items", "additionalItems")
        return {**rest, "prefixItems": node["items"], "items": node.get("additionalItems", True)}
    return without(node, "additionalItems")


def with_negation(node: Node, place: Place) -> Node | bool:
    """`not` where it takes constants out of a list, or everything, or nothing."""
    if "not" not in node:
        return node
    denied, rest = place.followed(node["not"]), without(node, "not")
    if denied is True or denied == {}:
        return False
    if denied is False:
        return rest
    listed = rest.get("enum")
    match denied:
        case {"const": value, **more} if not more and isinstance(listed, list):
            return _left(rest, listed, [value])
        case {"enum": list(values), **more} if not more and isinstance(listed, list):
            return _left(rest, listed, values)
    why = "is offered beside an enum only, taking out constants; say what may be"
    raise place.fail("not", why)


def _left(node: Node, listed: list[Any], denied: list[Any]) -> Node | bool:
    left = [v for v in listed if not any(v == d and kinds_of(v) & kinds_of(d) for d in denied)]
    return {**node, "enum": left} if left else False


WHY = {
    "uniqueItems": "isn't offered: nothing can keep items apart; bound maxItems, or leave it out",
    "contains": "isn't offered; use prefixItems, or leave it out",
    "if": "isn't offered; use anyOf",
    "dependencies": "isn't offered; require the properties, or use anyOf",
    "dependentSchemas": "isn't offered; use anyOf",
    "$dynamicRef": "isn't offered; use $ref",
    "$recursiveRef": "isn't offered; use $ref",
}
"""Keywords that can't be obeyed, and what to do instead."""


def refuse_unknown(node: Node, place: Place) -> Node:
    """Raises RequestError for a keyword that would be dropped or that the library trips over."""
    for name, why in WHY.items():
        if name in node:
            raise place.fail(name, why)
    return node
