"""How models write tool calls."""

import re
from dataclasses import dataclass

NAME = r"(?P<name>[^\s\"'`<>{}\[\]\\,｜]{1,128})"
"""None of the characters with which a format could go on."""
JSON_HEADER = rf'\{{\s*"name"\s*:\s*"{NAME}"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)'


@dataclass(frozen=True, slots=True)
class CallFormat:
    """opening: the tag before one call or several. header: what stands before a call's arguments,
    which are a JSON object. closing: what ends a call, after nothing but `trailer`. end: the tag
    after several calls; None where each call has its own opening. between: characters that may
    stand before a call.

    special: the tags are special tokens, which must be spelled out to be seen.
    """

    opening: str
    header: re.Pattern[str]
    trailer: re.Pattern[str]
    closing: str
    end: str | None = None
    between: str = " \t\r\n"
    special: bool = False


HERMES = CallFormat(
    opening="<tool_call>",
    header=re.compile(JSON_HEADER),
    trailer=re.compile(r"\s*\}?\s*"),
    closing="</tool_call>",
)
DEEPSEEK_V3 = CallFormat(
    opening="<｜tool▁calls▁begin｜>",
    header=re.compile(rf"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{NAME}\s*```json\s*(?=\{{)"),
    trailer=re.compile(r"\s*(```)?\s*"),
    closing="<｜tool▁call▁end｜>",
    end="<｜tool▁calls▁end｜>",
    special=True,
)
DEEPSEEK_V31 = CallFormat(
    opening="<｜tool▁calls▁begin｜>",
    header=re.compile(rf"<｜tool▁call▁begin｜>{NAME}<｜tool▁sep｜>\s*(?=\{{)"),
    trailer=re.compile(r"\s*"),
    closing="<｜tool▁call▁end｜>",
    end="<｜tool▁calls▁end｜>",
    special=True,
)
ARRAY = CallFormat(
    opening="[",
    header=re.compile(JSON_HEADER),
    trailer=re.compile(r"\s*"),
    closing="}",
    end="]",
    between=" \t\r\n,",
)
"""A JSON array of calls: what a grammar makes the model write where calls are required."""
MISTRAL = CallFormat(
    opening="[TOOL_CALLS]",
    header=ARRAY.header,
    trailer=ARRAY.trailer,
    closing=ARRAY.closing,
    end=ARRAY.end,
    between=" \t\r\n,[",
    special=True,
)

FORMATS = {
    "hermes": HERMES,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v31": DEEPSEEK_V31,
    "mistral": MISTRAL,
}
"""By the names of their notations; see `notations.py` for all."""
