"""What a schema says of values, wherever it says so."""

from typing import Any

import pytest

from megainfer.structured.schema import SchemaReader, moved

DEFS = {
    "count": {"type": "integer"},
    "a/b~c": {"type": "boolean"},
    "loop": {"$ref": "#/$defs/loop"},
    "tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}},
}


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"type": "number"}, {"number", "integer"}),
        ({"$ref": "#/$defs/count"}, {"integer"}),
        ({"$ref": "#/$defs/a~1b~0c"}, {"boolean"}),
        ({"$ref": "#/$defs/a%2Fb~0c"}, set()),
        ({"$ref": "#/$defs/loop"}, set()),
        ({"$ref": "#/$defs/none"}, set()),
        ({"$ref": "http://other/"}, set()),
        ({"allOf": [{"$ref": "#/$defs/count"}, {"minimum": 3}]}, {"integer"}),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, {"integer"}),
        ({"anyOf": [{"type": "array"}, {"$ref": "#/$defs/count"}]}, {"array", "integer"}),
        ({"oneOf": [{"type": "null"}, {"description": "anything"}]}, set()),
        ({"enum": [1, None]}, {"integer", "number", "null"}),
        ({"enum": ["a", 1.5]}, {"string", "number"}),
        ({"const": True}, {"boolean"}),
        ({"const": []}, {"array"}),
        ({"type": "integer", "enum": ["1"]}, set()),
        ({"description": "x"}, set()),
        (True, set()),
        (None, set()),
        ({"type": 3, "anyOf": 4, "allOf": {}, "enum": "x", "$ref": 5}, set()),
    ],
)
def test_kinds(schema: Any, kinds: set[str]) -> None:
    assert SchemaReader({"$defs": DEFS}).kinds(schema) == kinds


def test_members_of_every_part() -> None:
    root = {
        "$defs": {**DEFS, "base": {"properties": {"a": {"type": "integer"}}}},
        "allOf": [{"$ref": "#/$defs/base"}],
        "properties": {"b": {"$ref": "#/$defs/count"}},
        "anyOf": [{"properties": {"c": {"type": "null"}}}, {"properties": {"c": {"const": 1}}}],
        "additionalProperties": {"type": "array"},
    }
    reader = SchemaReader(root)
    assert reader.names(root) == ["b", "a", "c"]
    assert reader.kinds(reader.member(root, "b")) == {"integer"}
    assert reader.kinds(reader.member(root, "other")) == {"array"}
    del root["additionalProperties"]
    assert reader.kinds(reader.member(root, "a")) == {"integer"}
    assert reader.kinds(reader.member(root, "c")) == {"null", "integer", "number"}
    assert reader.member(root, "other") is None


def test_a_tree_is_read_as_far_as_asked() -> None:
    root = {"$ref": "#/$defs/tree", "$defs": DEFS}
    reader = SchemaReader(root)
    member = reader.member(root, "left")
    assert reader.names(member) == ["left"]
    assert reader.kinds(member) == {"object"}


def test_references_move_along() -> None:
    schema = {"$ref": "#", "a": [{"$ref": "#/$defs/x"}], "const": {"$ref": "#/y"}, "b": {"$ref": 1}}
    assert moved(schema, "#/$defs/f") == {
        "$ref": "#/$defs/f",
        "a": [{"$ref": "#/$defs/f/$defs/x"}],
        "const": {"$ref": "#/y"},
        "b": {"$ref": 1},
    }


def test_each_part_is_read_once() -> None:
    """A chain of definitions, each of which refers to the next twice, has 2^60 paths."""
    twice = [[{"$ref": f"#/$defs/{n}"}] * 2 for n in range(60)]
    chain: dict[str, Any] = {str(n): {"allOf": twice[n + 1]} for n in range(59)}
    chain["59"] = {"type": "null", "properties": {"a": {"const": 1}}}
    reader = SchemaReader({"$defs": chain})
    start = {"$ref": "#/$defs/0"}
    assert reader.kinds(start) == {"null"}
    assert reader.names(start) == ["a"]
    assert reader.member(start, "a") == {"const": 1}


def test_a_chain_without_end_says_nothing() -> None:
    chain: dict[str, Any] = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(5000)}
    reader = SchemaReader({"$defs": chain})
    start = {"$ref": "#/$defs/0"}
    assert (reader.kinds(start), reader.names(start), reader.member(start, "a")) == (
        set(),
        [],
        None,
    )
