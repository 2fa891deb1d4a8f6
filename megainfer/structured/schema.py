"""What a JSON schema says of a value, wherever it says so: by reference, in parts, by examples."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

ALL_OF, ANY_OF = ("allOf",), ("anyOf", "oneOf")
NUMBERS = frozenset({"integer", "number"})
Seen = dict[int, frozenset[str] | None]
"""By the identity of a schema: each is read once, however often it is referred to."""


class SchemaReader:
    """Reads one schema and what lies in it. Whatever is no schema says nothing; nothing raises."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self._ending: set[str | None] = set()  # references that lead nowhere back

    def target(self, reference: Any) -> Any:
        """What a `$ref` into the same document points at; None where there is no such thing."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        place = self.root
        for step in unquote(reference[1:]).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, dict) and name in place:
                place = place[name]
            elif isinstance(place, list) and name.isdecimal() and int(name) < len(place):
                place = place[int(name)]
            else:
                return None
        return place

    def kinds(self, schema: Any) -> frozenset[str]:
        """The types that a value may have; empty where nothing is said. `number` is both kinds."""
        try:
            return self._kinds(schema, {}) or frozenset()
        except RecursionError:
            return frozenset()

    def member(self, schema: Any, name: str) -> Any:
        """The schema of an object's member: its parts together; None where none speaks of it."""
        try:
            found = list(self._members(schema, name, {}))
        except RecursionError:
            return None
        return found[0] if len(found) == 1 else {"allOf": found} if found else None

    def names(self, schema: Any) -> list[str]:
        """The members that it names, in order."""
        try:
            return list(dict.fromkeys(self._names(schema, {})))
        except RecursionError:
            return []

    def leads_back(self, schema: Any) -> bool:
        """Whether a value would have to be what it has to be, without end: by `$ref`, `allOf`, and
        `anyOf` or `oneOf` of one.

        Each reference is followed once, however many schemas are asked about: of a chain of
        thousands each link is asked about.
        """
        way: dict[str | None, list[Any]] = {None: [schema]}  # what is left at each, the last first
        while way:
            reference, left = next(reversed(way.items()))
            if not left:
                del way[reference]
                self._ending.add(reference)
                continue
            part = left.pop()
            if not isinstance(part, dict):
                continue
            left += _list(part.get("allOf"))
            for key in ANY_OF:
                if len(alternatives := _list(part.get(key))) == 1:
                    left += alternatives
            further = part.get("$ref")
            if not isinstance(further, str) or further in self._ending:
                continue
            if further in way:
                return True
            way[further] = [self.target(further)]
        return False

    def _kinds(self, schema: Any, seen: Seen) -> frozenset[str] | None:
        """None: any."""
        if not isinstance(schema, dict) or id(schema) in seen:
            return seen.get(id(schema))
        seen[id(schema)] = None
        said = [_named(schema.get("type"))]
        if "const" in schema:
            said.append(kinds_of(schema["const"]))
        if isinstance(values := schema.get("enum"), list):
            said.append(frozenset[str]().union(*map(kinds_of, values)))
        said += [self._kinds(part, seen) for part in self._together(schema)]
        for key in ANY_OF:
            if parts := _list(schema.get(key)):
                said.append(_either([self._kinds(part, seen) for part in parts]))
        known = [kinds for kinds in said if kinds is not None]
        seen[id(schema)] = frozenset.intersection(*known) if known else None
        return seen[id(schema)]

    def _members(self, schema: Any, name: str, seen: Seen) -> Iterator[Any]:
        if not isinstance(schema, dict) or id(schema) in seen:
            return
        seen[id(schema)] = None
        own = schema.get("properties")
        if isinstance(own, dict) and name in own:
            yield own[name]
        elif isinstance(others := schema.get("additionalProperties"), dict):
            yield others
        for part in self._together(schema):
            yield from self._members(part, name, seen)
        for key in ANY_OF:
            parts = [list(self._members(p, name, seen)) for p in _list(schema.get(key))]
            if some := [{"allOf": found} for found in parts if found]:
                yield {"anyOf": some}

    def _names(self, schema: Any, seen: Seen) -> Iterator[str]:
        if not isinstance(schema, dict) or id(schema) in seen:
            return
        seen[id(schema)] = None
        if isinstance(own := schema.get("properties"), dict):
            yield from map(str, own)
        for part in self._together(schema):
            yield from self._names(part, seen)
        for key in ANY_OF:
            for part in _list(schema.get(key)):
                yield from self._names(part, seen)

    def _together(self, schema: dict[str, Any]) -> Iterator[Any]:
        """What holds beside its own words."""
        if "$ref" in schema:
            yield self.target(schema["$ref"])
        for key in ALL_OF:
            yield from _list(schema.get(key))


def kinds_of(value: Any) -> frozenset[str]:
    """The types that a value has; a whole number has two."""
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int():
            return NUMBERS
        case float():
            return NUMBERS if value.is_integer() else frozenset({"number"})
        case str():
            return frozenset({"string"})
        case list():
            return frozenset({"array"})
    return frozenset({"object"})


def moved(schema: Any, to: str) -> Any:
    """The same with its references where it lies at the pointer `to` of another document."""
    if isinstance(schema, list):
        return [moved(part, to) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: to + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in ("const", "enum", "default", "examples")
        else moved(value, to)
        for key, value in schema.items()
    }


def _named(types: Any) -> frozenset[str] | None:
    named = {kind for kind in (types if isinstance(types, list) else [types]) if _is_text(kind)}
    return (frozenset(named) | (NUMBERS if "number" in named else frozenset())) or None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _either(parts: list[frozenset[str] | None]) -> frozenset[str] | None:
    known = [kinds for kinds in parts if kinds is not None]
    return frozenset[str]().union(*known) if len(known) == len(parts) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
