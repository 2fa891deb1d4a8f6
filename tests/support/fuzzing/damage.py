"""What is done to a body and to its bytes."""

import gzip
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from tests.support.fuzzing.values import TEXTS, Json, nested, trouble

Place = tuple[Any, Any]
"""A container, and a key or an index of it."""


FLOAT_EXACT = 2.0**53
MOST_REPEATED = 10_000
"""Characters; what is long is tried by `tests.support.attacks`."""


def places(value: Any) -> Iterator[Place]:
    """Every value within this one, by where it is."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        inside = here.items() if isinstance(here, dict) else enumerate(here)
        for key, part in inside:
            yield here, key
            if isinstance(part, dict | list):
                waiting.append(part)


def damage(body: Json, random: Random) -> Json:
    """A copy with some of its values changed."""
    body = json.loads(json.dumps(body))
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        found = list(places(body))
        if found:
            random.choice(CHANGES)(random, *random.choice(found))
    return body


def _replace(random: Random, holder: Any, key: Any) -> None:
    holder[key] = trouble(random)


def _delete(random: Random, holder: Any, key: Any) -> None:
    del holder[key]


def _wrap(random: Random, holder: Any, key: Any) -> None:
    value = holder[key]
    holder[key] = random.choice(([value], {"type": value}, {"": value}, [value, trouble(random)]))


def _unwrap(random: Random, holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(value, dict | list) and value:
        holder[key] = random.choice(list(value.values() if isinstance(value, dict) else value))


def _repeat(random: Random, holder: Any, key: Any) -> None:
    value, times = holder[key], random.choice((2, 20, 200))
    if times * len(json.dumps(value)) > MOST_REPEATED:
        return
    holder[key] = value * times if isinstance(value, str | list) else [value] * times


def _spell(random: Random, holder: Any, key: Any) -> None:
    value = holder[key]
    holder[key] = json.dumps(value) if not isinstance(value, str) else len(value)


def _rename(random: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[random.choice((*TEXTS, key.upper(), key + "\x00", " " + key))] = holder.pop(key)


def _add(random: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[random.choice(TEXTS)] = trouble(random)
    else:
        holder.insert(key, trouble(random))


def _negate(random: Random, holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(value, int | float) and abs(value) < FLOAT_EXACT:
        holder[key] = random.choice((-value, value * 2**20, value + 0.5, not value, str(value)))


def _deepen(random: Random, holder: Any, key: Any) -> None:
    holder[key] = nested(random)


CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (
    *(_replace, _replace, _replace, _delete, _wrap, _unwrap, _repeat),
    *(_spell, _rename, _add, _negate, _deepen),
)


def damaged_bytes(text: bytes, random: Random) -> bytes:
    """Bytes that once were JSON."""
    at = random.randrange(len(text) + 1)
    return random.choice(
        (
            text[:at],
            text[at:],
            text[:at] + bytes([random.randrange(256)]) + text[at + 1 :],
            text[:at] + random.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0")) + text[at:],
            text + random.choice((b"}", b"\0", b" " * 1000, b"\n{}", text)),
            b"\xef\xbb\xbf" + text,
            text.decode("utf-8", "replace").encode("utf-16"),
            text.replace(b":", b":NaN ,", 1),
            text.replace(b"{", b'{"model": 1, "model": null,', 1),
            b"[" * random.choice((10, 1000, 20_000)) + text,
            gzip.compress(text),
            b"",
        )
    )
