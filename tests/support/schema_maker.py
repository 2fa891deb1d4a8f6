"""Random JSON schemas."""

from collections.abc import Callable
from random import Random
from typing import Any

Json = dict[str, Any]
NUMBERS = (0, 1, -1, 2, 7, 10, 99, -10, 0.5, -0.5, 0.25, 1.5, 2.75, -1.5, 1000, 2**53 + 1)
STEPS = (1, 2, 5, 0.5, 0.25, 0.125, 10)
WORDS = ("", "a", "b", "ab", "a1", "xyz", 'q"', "é", "x_1", "x_2", "long text", "2024-02-29", "\t")
NAMES = ("a", "b", "x_1", "x_2", "n", "")
PATTERNS = ("^(a|b)$", "^n$", "^a", "b$", "^x_", "^[ab]*$", "1", "^a|b$", "^.{2}$", "[^a]")
FORMATS = ("date", "int32", "password", "x-own", "uuid", "ipv4")
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


class SchemaMaker:
    """depth: how far schemas nest."""

    def __init__(self, random: Random, depth: int = 2) -> None:
        self._random = random
        self._depth = depth

    def document(self) -> Json:
        """A whole schema, with definitions that it may refer to."""
        schema = self.schema(self._depth)
        if self._chance(0.3):
            self._random.choice([_put_at_root, _put_below])(schema, self)
        if self._chance(0.2):
            schema |= {"title": "T", "description": "d", "$comment": "c", "examples": [1]}
        return schema

    def schema(self, depth: int) -> Json:
        kinds: list[Callable[[int], Json]] = [
            self._integer,
            self._number,
            self._string,
            self._constant,
            self._listed,
            self._types,
            self._any_number,
        ]
        if depth > 0:
            kinds += 2 * [self._array, self._object, self._any_of, self._all_of, self._one_of]
            kinds += [self._object, self._untyped]
        return self._random.choice(kinds)(depth - 1)

    def _integer(self, depth: int) -> Json:
        return {"type": "integer", **self._bounds()}

    def _number(self, depth: int) -> Json:
        return {"type": "number", **self._bounds()}

    def _any_number(self, depth: int) -> Json:
        return {"type": ["number", "null"], **self._bounds()}

    def _bounds(self) -> Json:
        bounds: Json = {}
        for names in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if self._chance(0.6):
                bounds[self._random.choice(names)] = self._random.choice(NUMBERS)
        if self._chance(0.2):
            bounds["multipleOf"] = self._random.choice(STEPS)
        return bounds

    def _string(self, depth: int) -> Json:
        return {"type": "string", **self._of_strings()}

    def _of_strings(self) -> Json:
        schema: Json = {}
        if self._chance(0.3):
            schema["minLength"] = self._random.randint(0, 3)
        if self._chance(0.4):
            schema["maxLength"] = self._random.randint(0, 4)
        if self._chance(0.3):
            schema["pattern"] = self._random.choice(PATTERNS)
        elif self._chance(0.2):
            schema["format"] = self._random.choice(FORMATS)
        return schema

    def _constant(self, depth: int) -> Json:
        return {"const": self.value(1)}

    def _listed(self, depth: int) -> Json:
        schema: Json = {"enum": [self.value(1) for _ in range(self._random.randint(1, 4))]}
        if self._chance(0.3):
            schema["type"] = self._random.choice(TYPES)
        if self._chance(0.2):
            schema["not"] = {"const": self._random.choice(schema["enum"])}
        return schema

    def _types(self, depth: int) -> Json:
        return {"type": self._random.sample(TYPES, self._random.randint(1, 3))}

    def _array(self, depth: int) -> Json:
        return {"type": "array", **self._of_arrays(depth)}

    def _of_arrays(self, depth: int) -> Json:
        schema: Json = {}
        if self._chance(0.7):
            schema["items"] = self._inner(depth)
        if self._chance(0.3):
            many = self._random.randint(1, 2)
            schema["prefixItems"] = [self._inner(depth) for _ in range(many)]
        if self._chance(0.3):
            schema["minItems"] = self._random.randint(0, 2)
        if self._chance(0.5):
            schema["maxItems"] = self._random.randint(0, 3)
        if self._chance(0.3):
            schema["uniqueItems"] = self._chance(0.5)
        return schema

    def _object(self, depth: int) -> Json:
        return {"type": "object", **self._of_objects(depth)}

    def _of_objects(self, depth: int) -> Json:
        names = self._random.sample(NAMES, self._random.randint(0, 3))
        schema: Json = {"properties": {name: self._inner(depth) for name in names}}
        if self._chance(0.6):
            schema["required"] = self._random.sample(names, self._random.randint(0, len(names)))
            if self._chance(0.1) and "n" not in schema["required"]:
                schema["required"].append("n")
        if self._chance(0.6):
            schema["additionalProperties"] = self._chance(0.1) or self._inner(depth)
        if self._chance(0.2):
            some = self._random.sample(PATTERNS, self._random.randint(1, 2))
            schema["patternProperties"] = {pattern: self._inner(depth) for pattern in some}
        if self._chance(0.2):
            schema["propertyNames"] = self._random.choice(
                [
                    {"type": "string"},
                    True,
                    {},
                    {"enum": ["a", "b"]},
                    {"pattern": "^x_"},
                    {"maxLength": 1},
                    {"$ref": "#/$defs/of"},
                ]
            )
        if self._chance(0.2):
            schema["minProperties"] = self._random.randint(0, 2)
        if self._chance(0.2):
            schema["maxProperties"] = self._random.randint(0, 3)
        if self._chance(0.1):
            schema["dependentRequired"] = {"a": ["b"]}
        if self._chance(0.1):
            schema["unevaluatedProperties"] = False
        return schema

    def _untyped(self, depth: int) -> Json:
        parts = (
            self._bounds,
            self._of_strings,
            lambda: self._of_arrays(depth),
            lambda: self._of_objects(depth),
        )
        chosen = self._random.sample(parts, self._random.randint(1, 2))
        return {name: value for part in chosen for name, value in part().items()}

    def _any_of(self, depth: int) -> Json:
        return self._beside({"anyOf": self._several(depth)}, depth)

    def _all_of(self, depth: int) -> Json:
        return self._beside({"allOf": self._several(depth)}, depth)

    def _one_of(self, depth: int) -> Json:
        return self._beside({"oneOf": self._several(depth)}, depth)

    def _several(self, depth: int) -> list[Any]:
        return [self._inner(depth) for _ in range(self._random.randint(1, 3))]

    def _beside(self, schema: Json, depth: int) -> Json:
        """What stands beside an applicator holds as well."""
        return {**schema, **self.schema(0)} if self._chance(0.2) else schema

    def _inner(self, depth: int) -> Any:
        if self._chance(0.08):
            return self._chance(0.7)
        if self._chance(0.08):
            return {"$ref": "#/$defs/of"}
        return self.schema(max(depth, 0))

    def value(self, depth: int) -> Any:
        """Any JSON value."""
        kinds: list[Callable[[], Any]] = [
            lambda: None,
            lambda: self._chance(0.5),
            lambda: self._random.choice(NUMBERS),
            lambda: self._random.choice(WORDS),
        ]
        if depth > 0:
            many = range(self._random.randint(0, 2))
            kinds.append(lambda: [self.value(depth - 1) for _ in many])
            kinds.append(lambda: {self._random.choice(NAMES): self.value(depth - 1) for _ in many})
        return self._random.choice(kinds)()

    def _chance(self, share: float) -> bool:
        return self._random.random() < share


def _put_at_root(schema: Json, maker: SchemaMaker) -> None:
    schema["$defs"] = {"of": maker.schema(1)}


def _put_below(schema: Json, maker: SchemaMaker) -> None:
    schema["$defs"] = {"of": {"allOf": [{"$ref": "#/$defs/in"}]}, "in": maker.schema(1)}
