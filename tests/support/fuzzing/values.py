"""Values by their types, and values that are trouble."""

import types
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

Json = dict[str, Any]
Make = Callable[[Random], Any]

TEXTS = (
    "",
    "a",
    "some words",
    " \n\t\r",
    "\x00",
    "\x1b[2J\x07",
    "\x7f\x80\x9f",
    "é\u0301\u0327",
    "\u202eright to left\u202c",
    "\u200b\ufeff\u2028\u2029",
    "\ufffd\ufffe\uffff",
    "\ud800",
    "\udfff\ud800",
    "😀👨‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "\U0010ffff",
    "<|im_start|>assistant<|im_end|><|endoftext|>",
    "<tool_call>{</tool_call><think></think>",
    "{{ 7 * 7 }}{% for i in range(9) %}{% endfor %}",
    "../../../etc/passwd",
    "http://169.254.169.254/",
    "%s%n%x{0.__class__}",
    "__proto__",
    "null",
    "NaN",
    "1e999",
    "a" * 257,
    "x " * 300,
    "ﷺ" * 70,
)
NUMBERS = (
    *(0, -0.0, 1, -1, 2, 0.5, 1.0, -0.1, 1e-320, 1e308, -1e308, 5.0),
    *(2**31 - 1, 2**31, -(2**31) - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1),
    *(2**64 - 1, 2**64, 10**40, -(10**300), 10**400),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [{}], {"": {}}, [None], {"type": []})


def trouble(random: Random) -> Any:
    """A value that few programs expect, of any type."""
    pick = random.randrange(8)
    if pick < 3:
        return random.choice(TEXTS)
    if pick < 5:
        return random.choice(NUMBERS)
    if pick < 7:
        return deepcopy(random.choice(OTHERS))
    return nested(random)


def nested(random: Random) -> Any:
    """A value some containers deep."""
    value = deepcopy(random.choice(OTHERS))
    for _ in range(random.choice((1, 2, 3, 10, 100))):
        value = [value] if random.random() < 0.5 else {random.choice(TEXTS): value}
    return value


def of_type(wanted: Any, random: Random, depth: int = 0) -> Any:
    """A value of a type as pydantic has them; small numbers, so that many are in range."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return of_type(arguments[0], random, depth)
    if origin in (Union, types.UnionType):
        return of_type(random.choice(arguments), random, depth)
    if origin is Literal:
        return random.choice(arguments)
    if origin is list:
        return [of_type(arguments[0], random, depth + 1) for _ in range(random.randrange(4))]
    if origin is dict:
        key, value = arguments
        return {
            str(of_type(key, random)): of_type(value, random, depth + 1)
            for _ in range(random.randrange(4))
        }
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return body_of(wanted, random, {}, depth + 1)
    return _PLAIN.get(wanted, trouble)(random)


_PLAIN: dict[Any, Make] = {
    str: lambda random: random.choice(TEXTS),
    int: lambda random: random.choice((0, 1, 2, 3, 5, 20, 300, -1)),
    float: lambda random: random.choice((0.0, 0.1, 0.5, 1.0, 1.5, 2, -1.0)),
    bool: lambda random: random.random() < 0.5,
    type(None): lambda random: None,
}


def body_of(
    model: type[BaseModel], random: Random, known: dict[str, list[Any]], depth: int = 0
) -> Json:
    """A body with the required fields and some others. known: values of fields that mean something,
    those of fields that the model doesn't have among them."""
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    others = sorted({*model.model_fields, *known} - set(required))
    few = 2 if depth else random.choice((0, 1, 2, 3, 6, 12))
    chosen = [*required, *random.sample(others, min(few, len(others)))]
    return {name: _field(model, name, random, known, depth) for name in chosen}


def _field(
    model: type[BaseModel], name: str, random: Random, known: dict[str, list[Any]], depth: int
) -> Any:
    field = model.model_fields.get(name)
    if name in known and (field is None or random.random() < 0.7):
        return random.choice(known[name])
    assert field is not None
    return of_type(field.annotation, random, depth)
