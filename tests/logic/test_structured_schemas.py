"""JSON schemas: what the grammar admits is valid, and what is valid it admits or refuses."""

import json
from collections import Counter
from contextlib import suppress
from random import Random
from time import process_time
from typing import Any

import jsonschema
import pytest

from megainfer.errors import RequestError
from megainfer.structured.compilable.document import compilable
from tests.support.admitted import Admitted
from tests.support.schema_instances import instances, spellings
from tests.support.schema_maker import Json, SchemaMaker

BIG = 2**53 + 1
NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}


@pytest.fixture(scope="module")
def admitted(tmp_path_factory) -> Admitted:
    return Admitted(tmp_path_factory.mktemp("schemas"))


def closed(**properties: Any) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


ADMITTED: list[tuple[Any, str, str]] = [  # a schema, texts that it admits, texts that it doesn't
    ({**NUMBER, "exclusiveMinimum": 0}, "0.5 1", "0 0.0 -0 -1"),
    ({**NUMBER, "exclusiveMinimum": 0, "maximum": 0.5}, "0.1 0.5 0.0001", "0 0.0 0.00 0.51 1"),
    ({**NUMBER, "exclusiveMinimum": 0, "maximum": 1}, "0.1 1 1.0", "0 0.0 1.1"),
    ({**NUMBER, "exclusiveMinimum": 1, "maximum": 1.5}, "1.2 1.5", "1 1.0 1.6"),
    ({**NUMBER, "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "1.5", "1 1.0 2 2.0"),
    ({**NUMBER, "exclusiveMaximum": 0, "minimum": -0.5}, "-0.1 -0.5", "0 -0 -0.0 -0.6"),
    ({**NUMBER, "exclusiveMaximum": -1, "minimum": -1.5}, "-1.2 -1.5", "-1 -1.0"),
    ({"allOf": [{**NUMBER, "exclusiveMinimum": 0}, {"maximum": 0.5}]}, "0.1 0.5", "0 0.0"),
    ({"type": ["number", "null"], "exclusiveMinimum": 2, "maximum": 2.5}, "2.1 null", "2 2.0"),
    ({**NUMBER, "minimum": 0, "exclusiveMinimum": True}, "1", "0 0.0"),
    ({**NUMBER, "minimum": 0, "exclusiveMinimum": False}, "0 1", "-1"),
    ({**INTEGER, "exclusiveMinimum": 0, "maximum": 2.5}, "1 2", "0 3"),
    ({**NUMBER, "exclusiveMinimum": 0, "multipleOf": 0.01}, "0.29 0.3 1", "0 0.005"),
    ({**INTEGER, "maximum": 2**63 - 1}, f"{2**63 - 1} -5", f"{2**63}"),
    (INTEGER, f"{BIG} {10**30} -{10**30}", "1.5"),
    ({"const": 2**60}, f"{2**60}", f"{2**60 + 1} {2**60 - 1}"),
    ({"type": "string", "format": "password"}, '"a"', "1"),
    ({**INTEGER, "format": "int32"}, "1", '"a"'),
    ({"type": "string", "minLength": 2.0}, '"ab"', '"a"'),
    ({"type": "array", "items": INTEGER, "uniqueItems": False}, "[1,1]", '["a"]'),
    ({"type": "array", "items": INTEGER, "maxItems": 1, "uniqueItems": True}, "[] [1]", "[1,1]"),
    ({"items": [INTEGER], "type": "array", "additionalItems": False}, "[] [1]", "[1,2]"),
    ({"type": "array", "items": INTEGER, "minContains": 2}, "[1]", '["a"]'),
    ({"type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False}, "[1]", "[1,2]"),
    ({"type": "object", "propertyNames": {"type": "string"}}, '{"a":1}', "1"),
    (
        {
            "type": "object",
            "propertyNames": {"enum": ["a", "b"]},
            "additionalProperties": INTEGER,
            "required": ["b"],
        },
        '{"b":1} {"a":1,"b":2}',
        '{"a":1} {"b":1,"c":1} {"b":"x"}',
    ),
    (
        {"type": "object", "propertyNames": {"$ref": "#/$defs/n"}, "$defs": {"n": {"const": "k"}}},
        '{} {"k":[1]}',
        '{"l":1}',
    ),
    (
        {
            "type": "object",
            "propertyNames": {"pattern": "^x_"},
            "additionalProperties": INTEGER,
        },
        '{} {"x_1":1}',
        '{"y":1} {"x_1":"a"}',
    ),
    (
        {
            "type": "object",
            "properties": {"score": {**INTEGER, "multipleOf": 5}},
            "patternProperties": {"^score$": {**INTEGER, "maximum": 50}},
            "required": ["score"],
            "additionalProperties": False,
        },
        '{"score":45}',
        '{"score":55} {"score":7} {"score":45,"score":45}',
    ),
    ({**closed(a=INTEGER), "dependentRequired": {"a": ["a"]}}, '{"a":1}', "{}"),
    ({**closed(a=INTEGER), "minProperties": 1, "maxProperties": 1}, '{"a":1}', "{}"),
    (
        {"type": "object", "properties": {"a": INTEGER}, "unevaluatedProperties": False},
        '{} {"a":1}',
        '{"b":1}',
    ),
    ({"anyOf": [{"type": "boolean"}, {"not": {}}]}, "true", "1 null"),
    ({"enum": ["a", "b", 1], "not": {"enum": ["a", True]}}, '"b" 1', '"a" true'),
    ({"enum": [1, True], "not": {"const": 1}}, "true", "1"),
    ({"$schema": "http://json-schema.org/schema#", "type": "boolean"}, "true", "1"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", **closed(a=INTEGER)}, '{"a":1}', "{}"),
    ({"if": {"type": "string"}, "type": "boolean"}, "true", "1"),
    (True, '1 "a" {"a":[]}', "a"),
    (
        {
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "discriminator": {"propertyName": "kind"},
            "$defs": {
                "cat": closed(kind={"const": "cat"}, lives=INTEGER),
                "dog": closed(kind={"enum": ["dog"]}),
            },
        },
        '{"kind":"cat","lives":9} {"kind":"dog"}',
        '{"kind":"cat"} {"kind":"dog","lives":9}',
    ),
    (
        {"oneOf": [INTEGER, {"$ref": "#/$defs/s"}], "$defs": {"s": {"type": "string"}}},
        '1 "a"',
        "{}",
    ),
    (
        {
            "oneOf": [{"enum": [1, "a"]}, {"enum": [True, "b"]}],
            "anyOf": [INTEGER, {"type": "boolean"}],
        },
        "1 true",
        '"a" "b"',
    ),
]


@pytest.mark.parametrize(
    ("schema", "good", "bad"), ADMITTED, ids=[json.dumps(schema)[:90] for schema, _, _ in ADMITTED]
)
def test_a_schema_means_what_the_standard_says(
    admitted: Admitted, schema: Any, good: str, bad: str
) -> None:
    for root in (schema, _under(schema)):
        for text in (*good.split(), *bad.split()):
            shown = text if root is schema else f'{{"x":{text}}}'
            assert admitted.admits(root, shown) is (text in good.split()), (root, shown)


def _under(schema: Any) -> Json:
    """The same as a property, with its definitions where they are looked for."""
    if not isinstance(schema, dict):
        return closed(x=schema)
    inner = {name: value for name, value in schema.items() if name != "$defs"}
    return {**closed(x=inner), "$defs": schema.get("$defs", {})}


REFUSED: list[tuple[Json, str]] = [
    ({"const": BIG}, f"properties.x.const {BIG} can't be kept exactly"),
    ({"const": {"deep": [BIG]}}, f"properties.x.const {BIG} can't"),
    ({"enum": [1, 1234567890123456789]}, "properties.x.enum 1234567890123456789 can't"),
    ({"const": 10**30 + 1}, "properties.x.const 1000"),
    ({"const": 10**400}, "properties.x.const 1000"),
    ({"const": 1e30}, "properties.x.const 1e+30 can't be kept exactly"),
    ({"const": 970041612.1094335}, "properties.x.const 970041612.1094335 can't"),
    ({**INTEGER, "minimum": BIG}, f"properties.x.minimum {BIG} can't be kept exactly"),
    ({**INTEGER, "minimum": -(2**63)}, f"properties.x.minimum {-(2**63)} can't"),
    ({**INTEGER, "maximum": 2**64 - 1}, f"properties.x.maximum {2**64 - 1} can't"),
    ({**INTEGER, "exclusiveMinimum": 2**60}, f"properties.x.exclusiveMinimum {2**60} can't"),
    ({**NUMBER, "maximum": 1e20}, "properties.x.maximum 1e+20 can't"),
    ({**NUMBER, "minimum": 1e-90}, "properties.x.minimum 1e-90 can't"),
    ({**NUMBER, "minimum": 2**61}, "bounds of this size can't be kept"),
    ({**NUMBER, "minimum": "1"}, "properties.x.minimum must be a number, not '1'"),
    ({**NUMBER, "multipleOf": 0}, "properties.x.multipleOf must be a number above 0"),
    ({**NUMBER, "multipleOf": 0.07}, "multipleOf has too many digits"),
    ({**NUMBER, "multipleOf": 0.25, "maximum": 1.5}, "multipleOf 0.25 isn't offered beside"),
    ({**NUMBER, "minimum": 3, "maximum": 2}, "it allows nothing: required property"),
    ({"type": "array", "uniqueItems": True}, "properties.x.uniqueItems isn't offered"),
    ({"type": "array", "contains": INTEGER}, "properties.x.contains isn't offered"),
    ({"not": INTEGER}, "properties.x.not is offered beside an enum only"),
    ({"if": True, "then": INTEGER}, "properties.x.if isn't offered; use anyOf"),
    ({"dependencies": {"a": ["b"]}}, "properties.x.dependencies isn't offered"),
    ({"dependentSchemas": {"a": True}}, "properties.x.dependentSchemas isn't offered"),
    ({"dependentRequired": {"a": ["b"]}}, "properties.x.dependentRequired isn't offered"),
    ({"$dynamicRef": "#a"}, "properties.x.$dynamicRef isn't offered; use $ref"),
    ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames is offered with an"),
    (
        {"properties": {"a": True}, "propertyNames": {"enum": ["a"]}},
        "propertyNames isn't offered beside",
    ),
    ({"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False},
     "properties.x.unevaluatedProperties isn't offered beside"),
    (
        {"patternProperties": {"^a": INTEGER, "b$": NUMBER}},
        "patternProperties: a name may match both of /^a/ and /b$/; make them exclude each other",
    ),
    (
        {"patternProperties": {r"\p{L}": INTEGER}, "properties": {"a": INTEGER}},
        "may match the property 'a'",
    ),
    ({"type": "object", "minProperties": 2}, "minProperties may be at most one more than"),
    (
        {"type": "object", "properties": {"a": INTEGER}, "minProperties": 1},
        "minProperties and maxProperties are offered only where all properties are required",
    ),
    ({"oneOf": [INTEGER, NUMBER]}, "a value may fit several schemas of a oneOf"),
    ({"pattern": "^(?=a)a"}, "the pattern ^(?=a)a can't be used: look-around"),
    ({"pattern": "["}, "the pattern [ can't be used: unclosed character class"),
    ({"$ref": "#/$defs/none"}, "a $ref points at #/$defs/none, where nothing is"),
    ({"$ref": "https://x.org/y"}, "a $ref points at https://x.org/y, which isn't part"),
    ({"allOf": [{"$ref": "#/properties/x"}]}, "properties.x leads back to itself by $ref and says"),
    ({"anyOf": [{"$ref": "#/properties/x"}]}, "properties.x leads back to itself by $ref and says"),
    ({"oneOf": [{"$ref": "#/properties/x"}]}, "properties.x leads back to itself by $ref and says"),
    ({"$ref": "#/properties/x"}, "properties.x leads back to itself by $ref and says"),
    ({"type": "objekt"}, "Invalid type: objekt"),
    ({"properties": []}, "properties must be an object"),
    ({"anyOf": [5]}, "properties.x.anyOf[0] must be a schema, an object or a"),
    ({"enum": [1], "not": {"const": 1}}, "it allows nothing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "words"), REFUSED, ids=[json.dumps(schema)[:90] for schema, _ in REFUSED]
)
def test_what_cannot_be_kept_is_refused_by_name(
    admitted: Admitted, schema: Json, words: str
) -> None:
    with pytest.raises(RequestError) as refused:
        admitted.matcher(closed(x=schema))
    assert words in str(refused.value)


def test_a_schema_that_allows_nothing_is_refused(admitted: Admitted) -> None:
    for schema in (False, {"not": {}}, {"enum": [1], "not": {"const": 1}}):
        with pytest.raises(RequestError, match=r"^the schema allows nothing"):
            admitted.matcher(schema)


def test_a_long_chain_of_references_is_followed_once() -> None:
    links = 3000
    chain = {f"{i}": {"allOf": [{"$ref": f"#/$defs/{i + 1}"}]} for i in range(links)}
    begun = process_time()
    compilable({"$defs": {**chain, f"{links}": INTEGER}, "$ref": "#/$defs/0"})
    assert process_time() - begun < 5
    with pytest.raises(RequestError, match="leads back to itself"):
        compilable({"$defs": {**chain, f"{links}": {"$ref": "#/$defs/7"}}})


def differ(admitted: Admitted, seeds: range) -> Counter[str]:
    """Compare random schemas with the jsonschema package; what was compared."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        random = Random(seed)
        schema = SchemaMaker(random).document()
        try:
            admitted.matcher(schema)
        except RequestError:
            seen["refused"] += 1
            continue
        seen["schemas"] += 1
        by_words = jsonschema.Draft202012Validator(schema)
        with_formats = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.FormatChecker()
        )
        for _ in range(3):
            if (text := admitted.walk(schema, random)) is not None:
                seen["texts"] += 1
                assert _is_valid(by_words, json.loads(text)) is not False, (seed, schema, text)
        for value in instances(schema, random, 8):
            if (valid := _is_valid(with_formats, value)) is None:
                continue
            seen["valid" if valid else "invalid"] += 1
            some = any(admitted.admits(schema, text) for text in spellings(value))
            assert some is valid, (seed, schema, value)
    return seen


def _is_valid(validator: Any, value: Any) -> bool | None:
    """None where the schema leads in a circle, which the package doesn't end."""
    try:
        return bool(validator.is_valid(value))
    except RecursionError:
        return None


def test_random_schemas_mean_what_jsonschema_says(admitted: Admitted) -> None:
    seen = differ(admitted, range(300))
    assert seen["schemas"] > 150
    assert seen["texts"] > 300
    assert min(seen["valid"], seen["invalid"]) > 200


@pytest.mark.slow
def test_many_random_schemas_mean_what_jsonschema_says(admitted: Admitted) -> None:
    seen = differ(admitted, range(1000, 13_000))
    print(dict(seen))
    assert seen["schemas"] > 6_000


JUNK: tuple[Any, ...] = (None, 1, -1, 1.5, True, "a", "#", [], [[]], {}, {"a": []}, [1, {}], "[")


def test_no_junk_in_a_schema_is_worse_than_refused(admitted: Admitted) -> None:
    compiled = 0
    for seed in range(400):
        random = Random(seed)
        schema = SchemaMaker(random).document()
        _spoil(schema, random)
        with suppress(RequestError):  # and no other
            admitted.matcher(schema)
            compiled += 1
    assert 0 < compiled < 400


def _spoil(schema: Json, random: Random) -> None:
    node: Any = schema
    while isinstance(node, dict) and node:
        name = random.choice([*node])
        if not isinstance(node[name], dict) or random.random() < 0.4:
            node[name] = random.choice(JUNK)
            return
        node = node[name]
