"""The notations of tool calls, by the names that vLLM's --tool-call-parser has for them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from server.parsing.calls import Attempt, FeedParser, read_answer, read_one_call, read_text
from server.parsing.feed import Feed, Reading, Tags
from server.parsing.harmony import HarmonyMessages, HarmonyOut
from server.parsing.headed_calls import DEEPSEEK, KIMI_K2, MISTRAL, HeadedCalls, HeadedFormat
from server.parsing.json_calls import JsonCalls
from server.parsing.offered import Offered, Tools
from server.parsing.out import Out
from server.parsing.parts import WholeParser
from server.parsing.pythonic import OPENING, PythonicCalls
from server.parsing.reasoning import ThinkParser
from server.parsing.text_calls import (
    DEEPSEEK_V32,
    MINIMAX_M2,
    TOOL_CALL,
    TextCalls,
    TextFormat,
)

Attempts = Callable[[Feed, Out, Offered], tuple[Tags, Attempt, Attempt]]
"""Of a notation: the openings, who reads what begins with one, and who what begins with none."""


@dataclass(frozen=True, slots=True)
class Notation:
    """attempts: None where the whole answer is in a notation of its own. special: its tags are
    special tokens, which must be spelled out to be seen; so must they where `opening` is one.
    in_lines: calls without a tag may begin in any line."""

    attempts: Attempts | None
    special: bool = False
    opening: str = ""
    in_lines: bool = False

    def parser(self, tools: Tools, thoughts: ThinkParser | None = None) -> WholeParser:
        """Of one answer, of a model that was told of these tools."""
        offered, attempts = Offered(tools), self.attempts
        if attempts is None:
            return channels(offered)

        def read(feed: Feed, out: Out) -> Reading[None]:
            return read_answer(feed, out, *attempts(feed, out, offered), self.in_lines)

        return FeedParser(read, Out(thoughts))


def plain(thoughts: ThinkParser | None) -> WholeParser:
    """Of an answer without calls."""
    return FeedParser(read_text, Out(thoughts))


def one_call(name: str, thoughts: ThinkParser | None) -> WholeParser:
    """Of an answer that is nothing but the arguments of a call, once the model has thought."""
    return FeedParser(lambda feed, out: read_one_call(feed, out, name), Out(thoughts))


def channels(offered: Offered | None) -> WholeParser:
    """Of gpt-oss's answers."""
    out = HarmonyOut()
    return FeedParser(lambda feed, _: HarmonyMessages(feed, out, offered).read(), out)


def _of_texts(written: TextFormat, special: bool = False) -> Notation:
    def attempts(feed: Feed, out: Out, offered: Offered) -> tuple[Tags, Attempt, Attempt]:
        calls = TextCalls(feed, out, offered, written)
        return written.openings, calls.tagged, calls.bare

    return Notation(attempts, special, written.outer[0][0])


def _of_headers(written: HeadedFormat) -> Notation:
    def attempts(feed: Feed, out: Out, offered: Offered) -> tuple[Tags, Attempt, Attempt]:
        calls = HeadedCalls(feed, out, offered, written)
        return written.openings, calls.tagged, calls.bare

    return Notation(attempts, True, written.begins[0])


def _of_objects(openings: tuple[str, ...], closings: tuple[str, ...], special: bool) -> Notation:
    tags = Tags(*openings)

    def attempts(feed: Feed, out: Out, offered: Offered) -> tuple[Tags, Attempt, Attempt]:
        calls = JsonCalls(feed, out, offered, Tags(*closings), tags)

        def tagged() -> Reading[bool]:
            feed.take(len((yield from feed.ahead(tags))))
            return (yield from calls.read())

        return tags, tagged, lambda: calls.read(strict=bool(openings))

    return Notation(attempts, special, openings[0] if openings else "")


def _pythonic(feed: Feed, out: Out, offered: Offered) -> tuple[Tags, Attempt, Attempt]:
    calls = PythonicCalls(feed, out, offered)
    return Tags(OPENING), calls.read, calls.read


ARRAY = _of_objects((), (), special=False)
"""A JSON array of calls: what a grammar makes the model write where calls are required."""
HARMONY = "openai"
NOTATIONS = {
    **dict.fromkeys(("hermes", "qwen3_coder", "glm45"), _of_texts(TOOL_CALL)),
    **dict.fromkeys(("deepseek_v3", "deepseek_v31"), _of_headers(DEEPSEEK)),
    "deepseek_v32": _of_texts(DEEPSEEK_V32, special=True),
    "kimi_k2": _of_headers(KIMI_K2),
    **dict.fromkeys(("mistral", "mistral_v11"), _of_headers(MISTRAL)),
    "minimax_m2": _of_texts(MINIMAX_M2),
    "granite": _of_objects(("<|tool_call|>",), ("</|tool_call|>",), special=True),
    "hunyuan_a13b": _of_objects(("<tool_calls>",), ("</tool_calls>",), special=False),
    "llama3_json": replace(
        _of_objects(("<|python_tag|>",), ("<|eom_id|>", "<|eot_id|>"), special=False), in_lines=True
    ),
    HARMONY: Notation(None, special=True),
    "pythonic": Notation(_pythonic, opening=OPENING, in_lines=True),
}
