"""Qwen3-Coder's calls: a `<tool_call>` around `<function=f>`, around `<parameter=x>`s."""

import re
from collections.abc import Sequence

from server.parsing.parts import Call
from server.parsing.spans import ReadSpan, in_a_row
from server.parsing.typed import Json, Schemas

OPENING, CLOSING = "<tool_call>", "</tool_call>"
PARAMETER = re.compile(r"<parameter=([^<>\s]{1,128})>(.*?)</parameter>", re.DOTALL)
FUNCTION = re.compile(r"\s*<function=([^<>\s]{1,128})>(.*?)</function>\s*", re.DOTALL)


def qwen3_coder_reader(tools: Sequence[Json]) -> ReadSpan:
    """A reader of spans; values are texts."""
    schemas = Schemas(tools)

    def read(span: str) -> list[Call] | None:
        found = FUNCTION.fullmatch(span.removeprefix(OPENING).removesuffix(CLOSING))
        given = found and in_a_row(PARAMETER, found[2])
        if found is None or given is None:
            return None
        try:
            return [schemas.call(found[1], [(each[1], _text(each[2])) for each in given])]
        except ValueError:
            return None

    return read


def _text(value: str) -> str:
    """One line end at either side belongs to the notation."""
    return value.removeprefix("\n").removesuffix("\n")
