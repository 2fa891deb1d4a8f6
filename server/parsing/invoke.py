"""Calls as `<invoke name="f">` around `<parameter name="x">`s, several within one tag.

MiniMax-M2 writes them so, and DeepSeek-V3.2 with a mark in each tag and a word on whether a
parameter is a text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from server.parsing.parts import Call
from server.parsing.spans import ReadSpan, as_call, in_a_row
from server.parsing.typed import Json, Schemas, json_value

QUOTED = r"""["']?([^<>"'\s]{1,128})["']?"""


@dataclass(frozen=True, slots=True)
class InvokeFormat:
    """outer: the tag's name around the calls. mark: what stands before the names of the others.
    special: the tags are special tokens."""

    outer: str
    mark: str = ""
    special: bool = False

    @property
    def opening(self) -> str:
        return f"<{self.outer}>"

    @property
    def closing(self) -> str:
        return f"</{self.outer}>"

    @property
    def invoke(self) -> re.Pattern[str]:
        tag = f"{self.mark}invoke"
        return re.compile(rf"<{tag} name={QUOTED}>(.*?)</{tag}>", re.DOTALL)

    @property
    def parameter(self) -> re.Pattern[str]:
        tag = f"{self.mark}parameter"
        kind = r"(?: string=[\"']?(true|false)[\"']?)?"
        return re.compile(rf"<{tag} name={QUOTED}{kind}>(.*?)</{tag}>", re.DOTALL)


MINIMAX_M2 = InvokeFormat("minimax:tool_call")
DEEPSEEK_V32 = InvokeFormat("｜DSML｜function_calls", "｜DSML｜", special=True)


def invoke_reader(written: InvokeFormat, tools: Sequence[Json]) -> ReadSpan:
    """A reader of spans; values are texts unless they or the tool's schema say otherwise."""
    schemas, invoke, parameter = Schemas(tools), written.invoke, written.parameter

    def read(span: str) -> list[Call] | None:
        body = span.removeprefix(written.opening).removesuffix(written.closing)
        try:
            return [call(found[1], found[2]) for found in in_a_row(invoke, body) or ()] or None
        except ValueError:
            return None

    def call(name: str, inside: str) -> Call:
        given = in_a_row(parameter, inside)
        if given is None:
            raise ValueError("something beside parameters")
        if all(each[2] is None for each in given):
            return schemas.call(name, [(each[1], _text(each[3])) for each in given])
        return as_call(name, {e[1]: json_value(e[3]) if e[2] == "false" else e[3] for e in given})

    return read


def _text(value: str) -> str:
    """One line end at either side belongs to the notation."""
    return value.removeprefix("\n").removesuffix("\n")
