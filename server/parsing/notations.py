"""The notations of tool calls, by the names that vLLM's --tool-call-parser has for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.parsing import glm45, qwen3_coder
from server.parsing.calls import CallParser
from server.parsing.formats import FORMATS, CallFormat
from server.parsing.harmony import HarmonyParser
from server.parsing.invoke import DEEPSEEK_V32, MINIMAX_M2, InvokeFormat, invoke_reader
from server.parsing.json_span import JsonSpan
from server.parsing.llama3_json import read_llama3_json
from server.parsing.parts import Parser
from server.parsing.pythonic import read_pythonic
from server.parsing.spans import WHITE, BracketSpan, SpanParser, TaggedSpan

Tools = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Notation:
    """parser: for one text, of a model that was told of these tools. special: its tags are special
    tokens, which must be spelled out to be seen; so must they where `opening` is one."""

    parser: Callable[[Tools], Parser]
    special: bool = False
    opening: str = ""


def _of_format(call_format: CallFormat) -> Notation:
    return Notation(lambda tools: CallParser(call_format), call_format.special, call_format.opening)


def _llama3_json(tools: Tools) -> Parser:
    return SpanParser(BracketSpan("{", f"{WHITE};", JsonSpan), read_llama3_json)


def _pythonic(tools: Tools) -> Parser:
    def follower() -> JsonSpan:
        return JsonSpan(quotes="\"'", brackets=("([{", ")]}"))

    return SpanParser(BracketSpan("[", WHITE, follower), read_pythonic)


def _qwen3_coder(tools: Tools) -> Parser:
    span = TaggedSpan(qwen3_coder.OPENING, qwen3_coder.CLOSING)
    return SpanParser(span, qwen3_coder.qwen3_coder_reader(tools))


def _glm45(tools: Tools) -> Parser:
    return SpanParser(TaggedSpan(glm45.OPENING, glm45.CLOSING), glm45.glm45_reader(tools))


def _of_invokes(written: InvokeFormat) -> Notation:
    def parser(tools: Tools) -> Parser:
        span = TaggedSpan(written.opening, written.closing)
        return SpanParser(span, invoke_reader(written, tools))

    return Notation(parser, written.special, written.opening)


HARMONY = "openai"
NOTATIONS = {
    **{name: _of_format(call_format) for name, call_format in FORMATS.items()},
    "deepseek_v32": _of_invokes(DEEPSEEK_V32),
    "glm45": Notation(_glm45, opening=glm45.OPENING),
    "llama3_json": Notation(_llama3_json),
    "minimax_m2": _of_invokes(MINIMAX_M2),
    HARMONY: Notation(lambda tools: HarmonyParser(with_calls=True), special=True),
    "pythonic": Notation(_pythonic),
    "qwen3_coder": Notation(_qwen3_coder, opening=qwen3_coder.OPENING),
}
