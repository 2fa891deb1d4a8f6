"""Where one is in a schema."""

from dataclasses import dataclass, replace
from typing import Any

from megainfer.errors import RequestError
from megainfer.structured.schema import SchemaReader

Node = dict[str, Any]
Schema = Node | bool


@dataclass(frozen=True, slots=True)
class Place:
    """reader: of the whole schema. path: the way from its root, as `properties.x`. merges: parts of
    the schema may hold for one value together."""

    reader: SchemaReader
    path: str = ""
    merges: bool = False

    def inner(self, *steps: str | int) -> "Place":
        """A place below this one."""
        shown = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps)
        return replace(self, path=(self.path + shown).removeprefix("."))

    def fail(self, keyword: str, why: str) -> RequestError:
        """For a keyword of this node."""
        return self.inner(keyword).fail_here(why)

    def fail_here(self, why: str) -> RequestError:
        """For what stands here."""
        return RequestError(f"{self.path or 'the schema'} {why}")

    def followed(self, schema: Any) -> Any:
        """The schema, or what it is nothing but a reference to."""
        seen: list[Any] = []
        while isinstance(schema, dict) and {*schema} <= {"$ref", *WORDS} and "$ref" in schema:
            if schema["$ref"] in seen:
                return schema
            seen.append(schema["$ref"])
            target = self.reader.target(schema["$ref"])
            if target is None:
                return schema
            schema = target
        return schema


WORDS = frozenset({"title", "description", "default", "examples", "$comment", "deprecated"})
"""Keywords that say nothing of a value."""


def without(node: Node, *names: str) -> Node:
    """The same without these keywords."""
    return {name: value for name, value in node.items() if name not in names}


def names_in(value: Any) -> list[str]:
    """The texts of what should be a list of them."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
