"""Numbers in a schema: the library knows doubles and whole numbers of 64 bits."""

import math
from decimal import Decimal
from typing import Any

from megainfer.errors import cited
from megainfer.structured.compilable.place import Node, Place, without

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
LARGEST = 2**63 - 1
EXACT = 2**53  # up to here every whole number is a double
DIGITS = 15  # decimals of so many digits are doubles of their own
LEAST = 1e-60
"""The bound that stands for an exclusive 0 where the library would admit that."""
STRING = "describe it as a string with a pattern"


def with_numbers(node: Node, place: Place) -> Node:
    """Bounds and lengths of one node as the library keeps them. Raises RequestError."""
    node = _draft4_bounds(node)
    for name in COUNTS:
        if isinstance(value := node.get(name), float) and value.is_integer():
            node = {**node, name: int(value)}
    for name in BOUNDS:
        if name in node:
            _check_bound(node, name, place)
    for name in ("const", "enum"):
        if name in node:
            _check_values(node[name], name, place)
    if "multipleOf" in node:
        _check_step(node, place)
    return node


def with_closed_bounds(node: Node, place: Place) -> Node:
    """Exclusive bounds as the nearest ones of 15 digits, where the library would admit the bound:
    between a whole number and something less than 1 away from it."""
    if node.get("type") == "integer":
        return node
    low, high = _tightest(node)
    if low is not None and (place.merges or _is_next(low, high)):
        node = _closed(node, "exclusiveMinimum", "minimum", 1)
    if high is not None and (place.merges or _is_next(high, low)):
        node = _closed(node, "exclusiveMaximum", "maximum", -1)
    return node


def _tightest(node: Node) -> tuple[float | None, float | None]:
    lows = [node[name] for name in ("minimum", "exclusiveMinimum") if name in node]
    highs = [node[name] for name in ("maximum", "exclusiveMaximum") if name in node]
    return max(lows, default=None), min(highs, default=None)


def _is_next(bound: float, other: float | None) -> bool:
    return other is not None and int(bound) == bound and int(other) == bound


def _closed(node: Node, exclusive: str, inclusive: str, sign: int) -> Node:
    if exclusive not in node:
        return node
    closed = _beyond(node[exclusive], sign)
    other = node.get(inclusive, closed)
    tighter = max(closed, other) if sign > 0 else min(closed, other)
    return {**without(node, exclusive), inclusive: tighter}


def _beyond(bound: float, sign: int) -> float:
    if bound == 0:
        return sign * LEAST
    exact = Decimal(repr(bound))
    last_digit = min(exact.adjusted() - DIGITS + 1, 0)
    return float(exact + sign * Decimal(1).scaleb(last_digit))


def _draft4_bounds(node: Node) -> Node:
    """`minimum: 0, exclusiveMinimum: true` as it is written since draft 6."""
    for inclusive, exclusive in (
        ("minimum", "exclusiveMinimum"),
        ("maximum", "exclusiveMaximum"),
    ):
        flag = node.get(exclusive)
        if not isinstance(flag, bool):
            continue
        node = without(node, exclusive)
        if flag and inclusive in node:
            node[exclusive] = node.pop(inclusive)
    return node


def _check_bound(node: Node, name: str, place: Place) -> None:
    bound = node[name]
    if not _is_number(bound):
        raise place.fail(name, f"must be a number, not {cited(bound)}")
    if node.get("type") == "integer" and name == "maximum" and bound == LARGEST:
        return  # as a double it is one more, which the library takes down again
    limit = EXACT if name.startswith("exclusive") else LARGEST
    if abs(bound) >= limit or 0 < abs(bound) < LEAST or not _is_kept(bound):
        raise place.fail(name, f"{bound} can't be kept exactly; leave it out, or {STRING}")


def _check_values(value: Any, name: str, place: Place) -> None:
    """Of a constant: each number in it has to be what the library reads."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as members:
                waiting.extend(members.values())
            case list() as items:
                waiting.extend(items)
            case bool():
                pass
            case int() | float() as number if not _is_kept(number):
                raise place.fail(name, f"{number} can't be kept exactly; {STRING}")


def _is_kept(number: float) -> bool:
    """Whether the library reads this number as what it is: a whole one as a double, another as its
    digits times a power of ten, each a double, which rounds twice."""
    if isinstance(number, int):
        return abs(number) < EXACT or _is_double(number)
    if not math.isfinite(number):
        return False
    _, digits, exponent = Decimal(repr(number)).as_tuple()
    assert isinstance(exponent, int), "it is finite"
    if number.is_integer() and int(number) != int(Decimal(repr(number))):
        return False  # it is written out in full, which others may read exactly
    whole = float(int("".join(map(str, digits))))
    power = float(f"1e{abs(exponent)}")
    return (whole * power if exponent > 0 else whole / power) == abs(number)


def _is_double(number: int) -> bool:
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _check_step(node: Node, place: Place) -> None:
    step = node["multipleOf"]
    if not _is_number(step) or step <= 0:
        raise place.fail("multipleOf", f"must be a number above 0, not {cited(step)}")
    if _step_decimals(step) > 1 and (place.merges or not _keeps_decimals(node)):
        raise place.fail("multipleOf", f"{step} isn't offered beside these bounds; leave it out")


def _keeps_decimals(node: Node) -> bool:
    """Whether multiples are all written: they have as many decimals as the step, the library's
    bounds of these have none behind their own, nor does what is next to an exclusive one or to 0.
    """
    bounds = {name: node[name] for name in BOUNDS if name in node}
    longest = _decimals(node["multipleOf"])
    inclusive = {*bounds} <= {"minimum", "maximum"} and bounds.get("minimum", -1) >= 0
    as_long = all(_decimals(bound) in (0, longest) for bound in bounds.values())
    return not bounds or (inclusive and as_long)


def _step_decimals(step: float) -> int:
    """0 for powers of ten, whose multiples are written with any number of decimals."""
    return 0 if {*Decimal(repr(step)).normalize().as_tuple().digits} <= {0, 1} else _decimals(step)


def _decimals(number: float) -> int:
    exponent = Decimal(repr(number)).normalize().as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0


def _is_number(value: Any) -> bool:
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return finite and not isinstance(value, bool)
