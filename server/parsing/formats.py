"""How models write tool calls."""

import re
from dataclasses import dataclass, replace

NAME = r"(?P<name>[^\s\"'`<>{}\[\]\\,｜]{1,128})"
"""None of the characters with which a format could go on."""
JSON_HEADER = rf'\{{\s*"name"\s*:\s*"{NAME}"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)'


@dataclass(frozen=True, slots=True)
class CallFormat:
    """opening: the tag before one call or several. header: what stands before a call's arguments,
    which are a JSON object; its group `id`, if it has one, is what the model calls this call.
    closing: what ends a call, after nothing but `trailer`; empty where the arguments' end does.
    end: the tag after several calls; None where each call has its own opening. between: characters
    that may stand before a call.

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
    trailer=re.compile(r"(\s*\})?\s*"),
    closing="</tool_call>",
)
DEEPSEEK_V3 = CallFormat(
    opening="<｜tool▁calls▁begin｜>",
    header=re.compile(rf"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{NAME}\s*```json\s*(?=\{{)"),
    trailer=re.compile(r"(\s*```)?\s*"),
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
    trailer=re.compile(r'(\s*,\s*"id"\s*:\s*"\w{0,64}")?\s*'),  # after arguments that are sent
    closing=ARRAY.closing,
    end=ARRAY.end,
    between=" \t\r\n,[",
    special=True,
)
KIMI_K2 = CallFormat(
    opening="<|tool_calls_section_begin|>",
    header=re.compile(
        rf"<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?{NAME}:\d{{1,9}})\s*"
        r"<\|tool_call_argument_begin\|>\s*(?=\{)"
    ),
    trailer=re.compile(r"\s*"),
    closing="<|tool_call_end|>",
    end="<|tool_calls_section_end|>",
    special=True,
)
"""Kimi's template writes a call's id, so that the model must see its own again."""
MISTRAL_V11 = CallFormat(
    opening="[TOOL_CALLS]",
    header=re.compile(rf"{NAME}(?:\[CALL_ID\](?P<id>\w{{1,64}}))?\[ARGS\]\s*(?=\{{)"),
    trailer=re.compile(r"\s*"),
    closing="",
    special=True,
)
"""Of tokenizers from version 11 on."""
GRANITE = replace(MISTRAL, opening="<|tool_call|>")
HUNYUAN = replace(ARRAY, opening="<tool_calls>", end="</tool_calls>", between=f"{ARRAY.between}[]")

FORMATS = {
    "hermes": HERMES,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v31": DEEPSEEK_V31,
    "granite": GRANITE,
    "hunyuan_a13b": HUNYUAN,
    "kimi_k2": KIMI_K2,
    "mistral_v11": MISTRAL_V11,
    "mistral": MISTRAL,
}
"""By the names of their notations; see `notations.py` for all."""
