"""How many tokens are reasoning: however they come, and whether or not one token ends it."""

import pytest

from server.openai.thought_counter import ThoughtCounter
from server.parsing.notations import NOTATIONS
from server.parsing.reasoning import END_OF_THINK, ThinkParser

VOCABULARY = ["<think>", "a", "bc", "</think>", "</", "think", ">", "c</", "\n\n", "<"]
VOCABULARY += ["<tool_call>", '{"name": "f"}', "</tool_call>"]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
END = VOCABULARY.index("</think>")


def decode(ids: list[int]) -> str:
    return "".join(VOCABULARY[token] for token in ids)


def ids_of(*pieces: str) -> list[int]:
    return [VOCABULARY.index(piece) for piece in pieces]


def count(ids: list[int], inside: bool, size: int, end: int | None = END) -> int:
    """Of tokens that come in deltas of this size."""
    parser = NOTATIONS["hermes"].parser(TOOLS, ThinkParser(inside))
    counter = ThoughtCounter(end, END_OF_THINK, decode)
    for start in range(0, len(ids), size):
        delta = ids[start : start + size]
        parts = parser.push(decode(delta))
        if start + size >= len(ids):
            parts.add(parser.finish())
        counter.add(delta, parts.reasoning, parser.thinking)
    return counter.count


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("pieces", "inside", "expected"),
    [
        (("a", "bc", "</think>", "a", "a"), True, 2),
        (("<think>", "a", "bc", "</think>", "a", "a"), False, 3),
        (("a", "bc", "</", "think", ">", "\n\n", "a"), True, 2),
        (("a", "c</", "think", ">", "a"), True, 1),
        (("a", "</", "a", "<", "</think>", "a"), True, 4),
        (("a", "bc", "a"), True, 3),
        (("a", "</think>", "a"), False, 0),
        (("a", "bc"), False, 0),
        (("<",), False, 0),
        (("</think>", "a"), True, 0),
        (("a", "bc", "<tool_call>", '{"name": "f"}', "</tool_call>", "a"), True, 2),
    ],
)
def test_tokens_before_the_end_of_thinking(pieces, inside, expected, size):
    assert count(ids_of(*pieces), inside, size) == expected


@pytest.mark.parametrize("size", [1, 4, 100])
def test_an_end_that_the_vocabulary_does_not_have_is_found_in_the_text(size):
    ids = ids_of("a", "bc", "</", "think", ">", "a")
    assert count(ids, True, size, end=None) == 2
