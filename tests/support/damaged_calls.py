"""Tool calls as models write them, and as they write them wrongly, in every notation.

`written` is what a notation asks for. A damage is something that models of a family have been seen
to do to it, by name; `DAMAGES` is the table of them.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Damage = Callable[[str, random.Random], str]

TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "limit": {"$ref": "#/$defs/count"},
                    "deep": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                    "where": {"type": "object"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "$defs": {"count": {"type": "integer"}},
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "get-weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
TEXTS = (
    "/a.txt",
    "Oslo",
    "a\nb",
    'say "hi"',
    "é 😀 \\ /",
    "{x: [1}",
    "<b>it's</b>",
    "12",
    " two ",
    "x < y",
)


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Json


def some_calls(dice: random.Random) -> list[Call]:
    """One call to three, of the tools."""
    return [_some_call(dice) for _ in range(dice.choice((1, 1, 1, 2, 3)))]


def _some_call(dice: random.Random) -> Call:
    name = dice.choice(("read_file", "read_file", "get-weather", "now"))
    if name == "now":
        return Call(name, {})
    if name == "get-weather":
        return Call(name, {"city": dice.choice(TEXTS)})
    values: Json = {
        "path": dice.choice(TEXTS),
        "limit": dice.choice((0, 5, -1, 10**12)),
        "deep": dice.choice((True, False, None)),
        "where": dice.choice(({}, {"a": [1, {"b": "x}] "}]}, {"x": 'q"'})),
        "tags": dice.choice(([], ["a", "b]"], ["<x>"])),
    }
    chosen = dice.sample(list(values), dice.randint(1, len(values)))
    return Call(name, {key: values[key] for key in chosen})


# --- as they are to be written --------------------------------------------------------------------


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(call: Call, arguments: str = "arguments") -> str:
    return _json({"name": call.name, arguments: call.arguments})


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _hermes(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{_object(call)}\n</tool_call>" for call in calls)


def _qwen3_coder(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{_function(call)}\n</tool_call>" for call in calls)


def _function(call: Call) -> str:
    lines = [f"<parameter={k}>\n{_bare(v)}\n</parameter>" for k, v in call.arguments.items()]
    return "\n".join((f"<function={call.name}>", *lines, "</function>"))


def _glm45(calls: Sequence[Call]) -> str:
    return "\n".join(_glm_call(call) for call in calls)


def _glm_call(call: Call) -> str:
    pairs = [
        f"<arg_key>{k}</arg_key>\n<arg_value>{_bare(v)}</arg_value>"
        for k, v in call.arguments.items()
    ]
    return "\n".join((f"<tool_call>{call.name}", *pairs, "</tool_call>"))


def _minimax(calls: Sequence[Call]) -> str:
    return _invokes(calls, "minimax:tool_call", "", lambda value: "")


def _dsml(calls: Sequence[Call]) -> str:
    def kind(value: Any) -> str:
        return f' string="{_json(isinstance(value, str))}"'

    return _invokes(calls, "｜DSML｜function_calls", "｜DSML｜", kind)


def _invokes(calls: Sequence[Call], outer: str, mark: str, kind: Callable[[Any], str]) -> str:
    lines = [f"<{outer}>"]
    for call in calls:
        lines.append(f'<{mark}invoke name="{call.name}">')
        for key, value in call.arguments.items():
            tag = f'{mark}parameter name="{key}"{kind(value)}'
            lines.append(f"<{tag}>{_bare(value)}</{mark}parameter>")
        lines.append(f"</{mark}invoke>")
    return "\n".join((*lines, f"</{outer}>"))


def _array(opening: str, closing: str) -> Callable[[Sequence[Call]], str]:
    return lambda calls: f"{opening}[{', '.join(map(_object, calls))}]{closing}"


def _mistral_v11(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{call.name}[ARGS]{_json(call.arguments)}" for call in calls)


def _deepseek(head: str, foot: str, sep: str = "") -> Callable[[Sequence[Call]], str]:
    def write(calls: Sequence[Call]) -> str:
        each = "\n".join(
            f"<｜tool▁call▁begin｜>{sep}{c.name}{head}{_json(c.arguments)}{foot}<｜tool▁call▁end｜>"
            for c in calls
        )
        return f"<｜tool▁calls▁begin｜>{each}<｜tool▁calls▁end｜>"

    return write


def _kimi(calls: Sequence[Call]) -> str:
    each = "".join(
        f"<|tool_call_begin|>functions.{call.name}:{number}<|tool_call_argument_begin|>"
        f"{_json(call.arguments)}<|tool_call_end|>"
        for number, call in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{each}<|tool_calls_section_end|>"


def _llama(calls: Sequence[Call]) -> str:
    return "; ".join(_object(call, "parameters") for call in calls)


def _pythonic(calls: Sequence[Call]) -> str:
    each = [
        f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})"
        for call in calls
    ]
    return f"[{', '.join(each)}]"


def _harmony(calls: Sequence[Call]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>"
        f"{_json(call.arguments)}<|call|>"
        for call in calls
    )


WRITTEN: Mapping[str, Callable[[Sequence[Call]], str]] = {
    "hermes": _hermes,
    "qwen3_coder": _qwen3_coder,
    "glm45": _glm45,
    "minimax_m2": _minimax,
    "deepseek_v32": _dsml,
    "mistral": _array("[TOOL_CALLS]", ""),
    "mistral_v11": _mistral_v11,
    "granite": _array("<|tool_call|>", ""),
    "hunyuan_a13b": _array("<tool_calls>", "</tool_calls>"),
    "deepseek_v3": _deepseek("\n```json\n", "\n```", "function<｜tool▁sep｜>"),
    "deepseek_v31": _deepseek("<｜tool▁sep｜>", ""),
    "kimi_k2": _kimi,
    "llama3_json": _llama,
    "pythonic": _pythonic,
    "openai": _harmony,
}
"""By the names of parsers."""


# --- as models damage them ------------------------------------------------------------------------


def _without(*tags: str, last: bool = False) -> Damage:
    def damage(text: str, dice: random.Random) -> str:
        for tag in tags:
            if tag in text:
                before, _, after = text.rpartition(tag) if last else text.partition(tag)
                text = before + after
        return text

    return damage


def _instead(*pairs: tuple[str, str]) -> Damage:
    def damage(text: str, dice: random.Random) -> str:
        for old, new in pairs:
            text = text.replace(old, new)
        return text

    return damage


def _arguments_as_text(text: str, dice: random.Random) -> str:
    """Granite 4, and whoever learned it from OpenAI's API."""
    return _each_object(text, lambda call: {**call, _key(call): _json(call[_key(call)])})


def _arguments_first(text: str, dice: random.Random) -> str:
    return _each_object(text, lambda call: {key: call[key] for key in reversed(call)})


def _openai_form(text: str, dice: random.Random) -> str:
    return _each_object(text, lambda call: {"type": "function", "function": call})


def _id_behind(text: str, dice: random.Random) -> str:
    return _each_object(text, lambda call: {**call, "id": "abcdefgh1"})


def _key(call: Json) -> str:
    return "parameters" if "parameters" in call else "arguments"


def _each_object(text: str, change: Callable[[Json], Json]) -> str:
    """Of the objects of calls that a text holds."""
    decoder, made, place = json.JSONDecoder(), "", 0
    while (start := text.find('{"name"', place)) >= 0:
        call, end = decoder.raw_decode(text, start)
        made += text[place:start] + _json(change(call))
        place = end
    return made + text[place:]


def _null_arguments(text: str, dice: random.Random) -> str:
    return _each_object(
        text, lambda c: c if c[_key(c)] else {**c, _key(c): dice.choice((None, ""))}
    )


def _no_arguments(text: str, dice: random.Random) -> str:
    return _each_object(text, lambda call: call if call[_key(call)] else {"name": call["name"]})


def _raw_line_ends(text: str, dice: random.Random) -> str:
    return text.replace("\\n", "\n")


def _comma_at_the_end(text: str, dice: random.Random) -> str:
    return text.replace('"}', '",}').replace("]}", "],}")


def _pythons_words(text: str, dice: random.Random) -> str:
    for word, other in (("true", "True"), ("false", "False"), ("null", "None")):
        text = text.replace(f": {word}", f": {other}").replace(f"\n{word}\n", f"\n{other}\n")
        text = text.replace(f">{word}<", f">{other}<")
    return text


def _recipient_first(text: str, dice: random.Random) -> str:
    return re.sub(r"(<\|channel\|>commentary)( to=\S+)", r"\2\1", text)


def _glued_ids(text: str, dice: random.Random) -> str:
    return re.sub(r"functions\.([\w-]+):(\d)", r"functions\1\2", text)


def _brace_too_many(text: str, dice: random.Random) -> str:
    place = text.rfind("}")
    return text if place < 0 else text[: place + 1] + "}" + text[place + 1 :]


def _brace_missing(text: str, dice: random.Random) -> str:
    place = text.rfind("}")
    return text if place < 0 else text[:place] + text[place + 1 :]


def _cut_off(text: str, dice: random.Random) -> str:
    return text[: dice.randrange(len(text) // 2, len(text))]


def _spoken_before(text: str, dice: random.Random) -> str:
    return f"Let me see.\n\n{text}"


def _spoken_after(text: str, dice: random.Random) -> str:
    return f"{text}\n\nDone."


def _noise(text: str, dice: random.Random) -> str:
    """A character left out, doubled or put elsewhere."""
    place = dice.randrange(len(text))
    made = (text[place] * 2, "", dice.choice("{}[]\"'<>/\\,:\n\x00"))
    return text[:place] + dice.choice(made) + text[place + 1 :]


def _control_characters(text: str, dice: random.Random) -> str:
    return _replaced(text, PUT_INTO_VALUES["control characters"])


ANY: Mapping[str, Damage] = {
    "as it should be": lambda text, dice: text,
    "text before": _spoken_before,
    "text after": _spoken_after,
    "cut off": _cut_off,
    "noise": _noise,
    "control characters": _control_characters,
}
OF_JSON: Mapping[str, Damage] = {
    "line ends in values": _raw_line_ends,
    "comma at the end": _comma_at_the_end,
    "Python's words": _pythons_words,
    "brace too many": _brace_too_many,
    "brace missing": _brace_missing,
}
OF_OBJECTS: Mapping[str, Damage] = {
    **OF_JSON,
    "arguments as text": _arguments_as_text,
    "arguments first": _arguments_first,
    "arguments null": _null_arguments,
    "arguments missing": _no_arguments,
    "OpenAI's form": _openai_form,
    "id behind": _id_behind,
}
OF_TEXTS: Mapping[str, Damage] = {"Python's words": _pythons_words}
DEEPSEEKS: Mapping[str, Damage] = {
    **OF_JSON,
    "section's opening missing": _without("<｜tool▁calls▁begin｜>"),
    "call's opening missing": _without("<｜tool▁call▁begin｜>"),
    "both openings missing": _without("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    "call's end missing": _without("<｜tool▁call▁end｜>"),
    "ends missing": _without("<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>", last=True),
}
TOOL_CALL_TAGS: Mapping[str, Damage] = {
    "opening missing": _without("<tool_call>\n"),
    "end missing": _without("\n</tool_call>", last=True),
    "all in one tag": _instead(("\n</tool_call>\n<tool_call>\n", "\n")),
}
DAMAGES: Mapping[str, Mapping[str, Damage]] = {
    "hermes": {**OF_OBJECTS, **TOOL_CALL_TAGS},
    "qwen3_coder": {
        **OF_TEXTS,
        **TOOL_CALL_TAGS,
        "both tags missing": _without("<tool_call>\n", "\n</tool_call>"),
        "function's end missing": _without("\n</function>"),
        "last parameter's end missing": _without("\n</parameter>", last=True),
        "a parameter's end missing": _without("</parameter>\n"),
        "attributes": _instead(
            ("<function=", "<function name="), ("<parameter=", "<parameter name=")
        ),
        "tag in a value": _instead(("/a.txt", "a </tool_call> b")),
        "parameter's end in a value": _instead(("/a.txt", "a </parameter> b")),
        "no line ends": _instead((">\n", ">"), ("\n<", "<")),
    },
    "glm45": {
        **OF_TEXTS,
        "end missing": _without("\n</tool_call>", last=True),
        "opening missing": _without("<tool_call>"),
        "no line ends": _instead((">\n", ">"), ("\n<", "<")),
        "tag in a value": _instead(("/a.txt", "a </tool_call> b")),
        "last value's end missing": _without("</arg_value>", last=True),
        "a value's opening missing": _without("<arg_value>"),
        "a value's end missing": _without("</arg_value>"),
        "first key's opening missing": _without("<arg_key>"),
        "first key glued to the name": _instead(
            ("\n<arg_key>", "<arg_key>"),
            ("_file<arg_key>", "_file"),
            ("weather<arg_key>", "weather"),
        ),
        "key's end missing": _without("</arg_key>"),
    },
    "minimax_m2": {
        **OF_TEXTS,
        "opening missing": _without("<minimax:tool_call>\n"),
        "end missing": _without("\n</minimax:tool_call>"),
        "invoke's end missing": _without("</invoke>\n", last=True),
        "parameter's end in a value": _instead(("/a.txt", "<parameter>a</parameter>")),
        "last parameter's end missing": _without("</parameter>", last=True),
        "no quotes": _instead(('name="', "name="), ('">', ">")),
    },
    "deepseek_v32": {
        "opening missing": _without("<｜DSML｜function_calls>\n"),
        "end missing": _without("\n</｜DSML｜function_calls>"),
        "invoke's end missing": _without("</｜DSML｜invoke>\n", last=True),
        "kind missing": _instead((' string="true"', ""), (' string="false"', "")),
        "opening broken": _instead(("<｜DSML｜function_calls", "<｜DSML｜toolcalls")),
        "no mark": _instead(("<｜DSML｜parameter", "<parameter")),
        "V4's tag": _instead(("｜DSML｜function_calls", "｜DSML｜tool_calls")),
    },
    "mistral": {
        **OF_OBJECTS,
        "opening missing": _without("[TOOL_CALLS]"),
        "bracket missing": _without("]", last=True),
        "no brackets": lambda text, dice: "[TOOL_CALLS]" + text[13:-1],
    },
    "mistral_v11": {
        **OF_JSON,
        "opening missing": _without("[TOOL_CALLS]"),
        "no tag before arguments": _instead(("[ARGS]", "")),
        "ids": _instead(("[ARGS]", "[CALL_ID]abcdefgh1[ARGS]")),
    },
    "granite": {**OF_OBJECTS, "opening missing": _without("<|tool_call|>")},
    "hunyuan_a13b": {
        **OF_OBJECTS,
        "opening missing": _without("<tool_calls>"),
        "end missing": _without("</tool_calls>"),
    },
    "deepseek_v3": {
        **DEEPSEEKS,
        "fences missing": _instead(("```json\n", ""), ("\n```", "")),
        "only the name": _instead(("function<｜tool▁sep｜>", "")),
    },
    "deepseek_v31": DEEPSEEKS,
    "kimi_k2": {
        **OF_JSON,
        "no prefix": _instead(("functions.", "")),
        "no number": _instead((":0<", "<"), (":1<", "<"), (":2<", "<")),
        "section's opening missing": _without("<|tool_calls_section_begin|>"),
        "both openings missing": _without("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        "ids that clients have changed": lambda text, dice: re.sub(
            r"functions\.([\w-]+):(\d)", r"functions_\1_\2", text
        ),
        "glued": _glued_ids,
        "singular": _instead(("tool_calls_section", "tool_call_section")),
        "ends missing": _without("<|tool_calls_section_end|>", "<|tool_call_end|>", last=True),
        "no tag before arguments": _instead(("<|tool_call_argument_begin|>", "")),
    },
    "llama3_json": {
        **OF_OBJECTS,
        "tag": lambda text, dice: f"<|python_tag|>{text}",
        "arguments": _instead(('"parameters": ', '"arguments": ')),
    },
    "pythonic": {
        "tags": lambda text, dice: f"<|python_start|>{text}<|python_end|>",
        "JSON's words": _instead(("=True", "=true"), ("=False", "=false"), ("=None", "=null")),
        "bracket missing": _without("]", last=True),
    },
    "openai": {
        **OF_JSON,
        "no prefix": _instead(("to=functions.", "to=")),
        "slash": _instead(("to=functions.", "to=functions/")),
        "glued": _instead((" <|constrain|>json", "json")),
        "no space": _instead((" <|constrain|>", "<|constrain|>")),
        "recipient first": _recipient_first,
        "analysis": _instead(("commentary", "analysis")),
        "no end": _without("<|call|>", last=True),
    },
}
DAMAGES = {name: {**ANY, **own} for name, own in DAMAGES.items()}
"""By notation and name."""
PUT_INTO_VALUES: Mapping[str, Mapping[str, str]] = {
    "control characters": {"Oslo": "Os\tlo", "/a.txt": "/a\x01.txt"},
    "tag in a value": {"/a.txt": "a </tool_call> b"},
    "parameter's end in a value": {"/a.txt": "a </parameter> b"},
}
SAID = ("", "Let me see.", "Done.")
"""What stands beside calls."""
HOPELESS = frozenset({"cut off", "noise"})
"""After which a call may be another."""


def damaged(name: str, damage: str, dice: random.Random) -> tuple[list[Call], str]:
    """Calls, and how a model writes them that does this wrong; with them what it has put into their
    values."""
    calls = some_calls(dice)
    text = DAMAGES[name][damage](WRITTEN[name](calls), dice)
    puts = dict(PUT_INTO_VALUES.get(damage, ()))
    if damage == "parameter's end in a value" and name == "minimax_m2":
        puts = {"/a.txt": "<parameter>a</parameter>"}
    return [Call(call.name, _put(call.arguments, puts)) for call in calls], text


def _put(arguments: Json, puts: Mapping[str, str]) -> Json:
    return {
        key: _replaced(value, puts) if isinstance(value, str) else value
        for key, value in arguments.items()
    }


def _replaced(text: str, puts: Mapping[str, str]) -> str:
    for old, new in puts.items():
        text = text.replace(old, new)
    return text


def in_pieces(text: str, dice: random.Random) -> list[str]:
    """As tokens come: mostly short."""
    pieces, place = [], 0
    while place < len(text):
        size = dice.choice((1, 1, 2, 3, 4, 5, 8, 30))
        pieces.append(text[place : place + size])
        place += size
    return pieces
