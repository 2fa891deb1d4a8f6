"""Values that a schema suggests, right or nearly so, and how they may be written."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice, permutations, product
from random import Random
from typing import Any

from tests.support.schema_maker import NAMES, TYPES, WORDS, Json, SchemaMaker


def instances(schema: Json, random: Random, count: int) -> Iterator[Any]:
    """So many values."""
    maker = SchemaMaker(random)
    for _ in range(count):
        yield _guess(schema, schema, maker, random, 4)


def _guess(schema: Any, root: Json, maker: SchemaMaker, random: Random, depth: int) -> Any:
    def inner(part: Any) -> Any:
        return _guess(part, root, maker, random, depth - 1)

    if not isinstance(schema, dict) or depth == 0 or random.random() < 0.05:
        return maker.value(1)
    if "$ref" in schema:
        return inner(root.get("$defs", {}).get(schema["$ref"].rsplit("/")[-1], True))
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return random.choice(schema["enum"])
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            chosen = random.choice(schema[name])
            rest = {key: value for key, value in schema.items() if key != name}
            joined = {**rest, **chosen} if isinstance(chosen, dict) else rest
            return inner(joined)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = random.choice(kind)
    if kind is None:
        kind = random.choice([k for k in TYPES if _speaks_of(schema, k)] or list(TYPES))
    if kind in ("integer", "number"):
        return _number_near(schema, random, whole=kind == "integer")
    if kind == "string":
        return (
            random.choice(WORDS)
            if "pattern" in schema or "format" in schema
            else "".join(random.choice("abxé1_") for _ in range(random.randint(0, 4)))
        )
    if kind == "array":
        return _array_like(schema, random, inner)
    if kind == "object":
        return _object_like(schema, random, inner)
    return None if kind == "null" else random.random() < 0.5


def _speaks_of(schema: Json, kind: str) -> bool:
    words = {
        "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        "string": ("minLength", "maxLength", "pattern", "format"),
        "array": ("items", "prefixItems", "minItems", "maxItems"),
        "object": ("properties", "required", "additionalProperties", "patternProperties"),
    }
    return any(word in schema for word in words.get(kind, ()))


def _number_near(schema: Json, random: Random, whole: bool) -> Any:
    near = [v for k, v in schema.items() if "imum" in k.lower() or k == "multipleOf"] or [0]
    off = random.choice((0, 0, 1, -1, 2, -2, 5) if whole else (0, 0, 1, -1, 0.25, -0.25, 0.5))
    value = random.choice(near) + off
    return int(value) if whole and random.random() < 0.9 else value


def _array_like(schema: Json, random: Random, inner: Callable[[Any], Any]) -> list[Any]:
    least, most = schema.get("minItems", 0), schema.get("maxItems", 3)
    many = random.randint(min(least, most), max(least, most))
    prefix = schema.get("prefixItems", [])
    made = [inner(prefix[i] if i < len(prefix) else schema.get("items", True)) for i in range(many)]
    return made[: len(prefix)] if schema.get("items") is False else made


def _object_like(schema: Json, random: Random, inner: Callable[[Any], Any]) -> Json:
    required = schema.get("required", [])
    known = schema.get("properties", {})
    made = {
        name: inner(part)
        for name, part in known.items()
        if name in required or random.random() < 0.6
    }
    if random.random() < 0.4:
        name = random.choice(NAMES)
        matching = list(schema.get("patternProperties", {}).values())
        made.setdefault(
            name, inner(random.choice([*matching, schema.get("additionalProperties", True)]))
        )
    return made


def spellings(value: Any, most: int = 100) -> Iterator[str]:
    """Texts of a value: members of objects in any order, numbers without exponents."""
    return islice(_spell(value), most)


def _spell(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (f"[{', '.join(items)}]" for items in product(*map(_few, value)))
    elif isinstance(value, dict):
        for texts in product(*map(_few, value.values())):
            names = (json.dumps(name, ensure_ascii=False) for name in value)
            members = [f"{name}: {text}" for name, text in zip(names, texts, strict=True)]
            yield from (f"{{{', '.join(order)}}}" for order in permutations(members))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        plain = format(Decimal(repr(value)), "f")
        whole = plain.rstrip("0").rstrip(".") if "." in plain else plain
        point = "" if "." in whole else "."
        yield from (whole, *(f"{whole}{point}{'0' * more}" for more in (1, 2, 3)))
    else:
        yield json.dumps(value, ensure_ascii=False)


def _few(value: Any) -> list[str]:
    return list(islice(_spell(value), 6))
