"""GLM-4.5's calls: a `<tool_call>` around a name, and pairs of `<arg_key>` and `<arg_value>`."""

import re
from collections.abc import Sequence

from server.parsing.formats import NAME
from server.parsing.parts import Call
from server.parsing.spans import ReadSpan, in_a_row
from server.parsing.typed import Json, Schemas

OPENING, CLOSING = "<tool_call>", "</tool_call>"
PAIR = re.compile(
    r"<arg_key>\s*([^<>\s][^<>]{0,127})</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL
)
CALL = re.compile(rf"\s*{NAME}\s*(?P<pairs><arg_key>.*)?", re.DOTALL)


def glm45_reader(tools: Sequence[Json]) -> ReadSpan:
    """A reader of spans; texts stand bare, everything else as JSON."""
    schemas = Schemas(tools)

    def read(span: str) -> list[Call] | None:
        found = CALL.fullmatch(span.removeprefix(OPENING).removesuffix(CLOSING))
        if found is None:
            return None
        pairs = in_a_row(PAIR, found["pairs"] or "")
        if pairs is None:
            return None
        try:
            return [schemas.call(found["name"], [(p[1].rstrip(), p[2]) for p in pairs])]
        except ValueError:
            return None

    return read
