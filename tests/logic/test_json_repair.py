"""Whatever a model writes for arguments, what is sent of it is a JSON object."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.parsing.feed import Feed, Tags
from server.parsing.json_repair import MAX_DEPTH, copy_arguments, repaired

CLOSERS = Tags("</tool_call>", "<tool_call>")
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)
BITS = st.sampled_from(
    [
        *('{"a": ', '"b"', "{", "}", "[", "]", ",", ":", '"', "'", "\\", "\\u", "\\ud83d", "\n"),
        *(
            "True",
            "null",
            "1",
            "-",
            "1e999",
            "0x1",
            "NaN",
            "word",
            " ",
            "<",
            "</tool_call>",
            "(",
            ")",
        ),
        *("\\u00e9", "\x00", "é", "=", "\u2028", "\xa0", "//", "```"),
    ]
)


def copied(*pieces: str) -> str:
    feed, said = Feed(), list[str]()
    reading = copy_arguments(feed, said.append, CLOSERS)
    for piece in pieces:
        feed.add(piece)
        next(reading, None)
    feed.ended = True
    assert next(reading, None) is None
    return "".join(said)


@settings(max_examples=300, deadline=None)
@given(st.lists(BITS, max_size=14).map("".join))
def test_anything_becomes_an_object_and_cuts_do_not_matter(text: str) -> None:
    whole = copied("{" + text)
    assert copied("{", *text) == whole
    assert isinstance(json.loads(whole, parse_constant=_none), dict)
    whole.encode()


def _none(constant: str) -> Any:
    raise AssertionError(constant)


@settings(max_examples=200, deadline=None)
@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]))
def test_what_is_valid_stays_as_it_was_written(
    value: Any, escaped: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=escaped, indent=indent, allow_nan=False)
    text = text.encode("utf-8", "replace").decode()
    assert copied(text) == text
    assert copied(*text) == text


@settings(max_examples=200, deadline=None)
@given(OBJECTS)
def test_pythons_spelling_is_understood(value: Any) -> None:
    spelled = json.loads(json.dumps(value))
    read = json.loads(repaired(repr(spelled)))
    assert _same(read, spelled)


def _same(one: Any, other: Any) -> bool:
    """Python escapes some characters in its own way, which are looked at elsewhere."""
    if "\\x" in repr(other) or "\\U" in repr(other) or "\\\\" in repr(other):
        return isinstance(one, dict)
    return bool(one == other)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1', {"a": 1}),
        ('{"a": "x', {"a": "x"}),
        ('{"a": [1, {"b": "x', {"a": [1, {"b": "x"}]}),
        ('{"a', {"a": None}),
        ('{"a":', {"a": None}),
        ('{"a": 1,', {"a": 1}),
        ('{"a": 1,}', {"a": 1}),
        ('{"a": [1, 2,]}', {"a": [1, 2]}),
        ('{"a": [1, 2}', {"a": [1, 2]}),
        ('{"a": [1, , 2]}', {"a": [1, 2]}),
        ('{"a": 1 "b": 2}', {"a": 1, "b": 2}),
        ('{"a": "x", "b"}', {"a": "x", "b": None}),
        ('{"a": , "b": 2}', {"a": None, "b": 2}),
        ("{a: 1, b-c: x y}", {"a": 1, "b-c": "x y"}),
        ("{'a': 'it\\'s \"x\"'}", {"a": 'it\'s "x"'}),
        (
            '{"a": True, "b": None, "c": NaN, "d": -Infinity}',
            {"a": True, "b": None, "c": None, "d": None},
        ),
        (
            '{"a": .5, "b": 1., "c": +3, "d": 007, "e": 1e400}',
            {"a": 0.5, "b": 1, "c": 3, "d": 7, "e": None},
        ),
        ('{"a": 1_000, "b": 0x10, "c": 1-2}', {"a": "1_000", "b": "0x10", "c": "1-2"}),
        ('{"a": "x\ny\tz"}', {"a": "x\ny\tz"}),
        ('{"a": "\\x\\u12"}', {"a": "\\x\\u12"}),
        ('{"a": "C:\\dir"}', {"a": "C:\\dir"}),
        ('{"a": "say "hi" now"}', {"a": 'say "hi" now'}),
        ('{"a": "\\ud83d\\ude00 \\ud83d \\ude00"}', {"a": "😀 \ufffd \ufffd"}),
        ('{"a": (1, 2)}', {"a": [1, 2]}),
        ('{"a": 1}}}', {"a": 1}),
        ('{"a":\xa01}', {"a": 1}),
        ("{]})", {}),
        ("{", {}),
    ],
)
def test_what_models_write(text: str, value: Any) -> None:
    assert json.loads(copied(text)) == value
    assert json.loads(copied(*text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("null", {}),
        ("[]", {}),
        ('"{}"', {}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('[{"a": 1}]', {"a": 1}),
        ("12", {}),
        ("{x", {"x": None}),
        (" {'a': 1}", {"a": 1}),
    ],
)
def test_what_stands_for_arguments(text: str, value: Any) -> None:
    assert json.loads(repaired(text)) == value


def test_brackets_without_end_are_cut() -> None:
    made = repaired('{"a": ' + "[" * 5000)
    assert made.count("[") == MAX_DEPTH - 1
    json.loads(made)


@given(st.floats(allow_infinity=False, allow_nan=False))
def test_numbers_stay(number: float) -> None:
    assert math.isclose(json.loads(repaired(f'{{"a": {number!r}}}'))["a"], number)
