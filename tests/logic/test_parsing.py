"""Parsers of model text: whatever the cuts, the same parts; nothing lost, no tag in the content."""

import json
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.parsing.notations import ARRAY, NOTATIONS, Notation, channels, one_call, plain
from server.parsing.offered import Offered
from server.parsing.parts import Call, Parser, Parts, whole_calls
from server.parsing.reasoning import MISTRAL_TAGS, ThinkParser, ends_in_thinking
from tests.support.endless_calls import ENDLESS

HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "}<\\"", "b": [1, {}]}}\n</tool_call>'
DEEPSEEK_CALL = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"a": "}<\\"", "b": [1, {}]}\n```<｜tool▁call▁end｜>'
)
QWEN_CALL = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
ARGUMENTS = '{"a": "}<\\"", "b": [1, {}]}'


LLAMA_CALL = f'{{"name": "f", "parameters": {ARGUMENTS}}}'


GLM_CALL = "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
MINIMAX_CALL = (
    '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">1</parameter>\n</invoke>\n'
    "</minimax:tool_call>"
)
DSML_CALL = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="x" string="false">1</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
)
KIMI_CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    f"{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>"
)
HARMONY = (
    "<|channel|>analysis<|message|>hm<|end|>",
    "<|start|>assistant",
    "<|channel|>final<|message|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    *("<|call|>", "<|return|>", "<|end|>", "<|start|>", "<|message|>"),
)


KNOWN = [
    {"type": "function", "function": {"name": name}}
    for name in ("f", "g", "h", "mod.g", "g.h", "now")
]
OFFERED = Offered(KNOWN)


def parser_of(name: str) -> Parser:
    return NOTATIONS[name].parser(KNOWN)


def parse(parser: Parser, *pieces: str) -> Parts:
    parts = Parts()
    for piece in pieces:
        parts.add(parser.push(piece))
    parts.add(parser.finish())
    return parts


def summary(parts: Parts) -> tuple[str, str, list[Call]]:
    return parts.content, parts.reasoning, whole_calls(parts.calls)


FRAGMENTS = st.sampled_from(
    [
        *(HERMES_CALL, DEEPSEEK_CALL, "<tool_call>", "</tool_call>", '{"name": "g", "arguments": '),
        *('{"x": 1}', "}", '{"arguments": {}, "name": "h"}', "<tool", "_call>", "\n", " ", "hi"),
        *("<think>", "</think>", "<", "</th", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        *("[TOOL_CALLS]", '[{"name": "g", "arguments": {"x": "y"}}', "]", ", ", '"', "\\", "["),
        *("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}", "<｜tool▁call▁end｜>"),
        *("[f(x=1, y='a]\\'')]", "[f(", "x=[1, {'a': None}])", ")", "'", "(", ";", QWEN_CALL),
        *(GLM_CALL, MINIMAX_CALL, DSML_CALL, KIMI_CALL, *HARMONY),
        *("<arg_key>", "x</arg_key>", "<arg_value>", "</arg_value>", "<|tool_call_end|>"),
        *("f[ARGS]{}", "[CALL_ID]a", "[ARGS]"),
        *("<tool_calls>", "</tool_calls>", "<|tool_call|>", "to=functions.f", "<|", "|>"),
        *("<function=f>", "<parameter=x>", "</parameter>", "</function>", LLAMA_CALL),
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(FRAGMENTS, max_size=8).map("".join), st.data())
@pytest.mark.parametrize("name", [None, "array", *NOTATIONS])
@pytest.mark.parametrize("inside", [None, False, True])
def test_the_cuts_do_not_matter(
    name: str | None, inside: bool | None, text: str, data: st.DataObject
) -> None:
    def parser() -> Parser:
        thoughts = None if inside is None else ThinkParser(inside, around=("<answer>",))
        if name is None:
            return plain(thoughts)
        return (ARRAY if name == "array" else NOTATIONS[name]).parser(KNOWN, thoughts)

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = summary(parse(parser(), text))
    assert summary(parse(parser(), *pieces)) == whole
    assert summary(parse(parser(), *text)) == whole


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet='<>/_tolcahink{}[]" \n:,;', max_size=60))
@pytest.mark.parametrize("name", list(NOTATIONS))
def test_text_without_a_call_stays_as_it_is(name: str, text: str) -> None:
    assert summary(parse(parser_of(name), *text)) == (text, "", [])


OWN = {
    "pythonic": "[f(x=1)]",
    "llama3_json": '{"name": "f", "parameters": {}}',
    "qwen3_coder": QWEN_CALL,
    "glm45": GLM_CALL,
    "minimax_m2": MINIMAX_CALL,
    "deepseek_v32": DSML_CALL,
}
ANYWHERE = ("qwen3_coder", "glm45", "minimax_m2", "deepseek_v32")
ALIKE = ({"qwen3_coder", "glm45"}, {"llama3_json"})
"""Whose calls others understand, too."""


@settings(max_examples=40, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", list(OWN))
def test_what_is_no_call_is_content(name: str, data: st.DataObject) -> None:
    alike = set().union(*(group for group in ALIKE if name in group or name in ANYWHERE)) - {name}
    known = [call for other, call in OWN.items() if other not in alike]
    pieces = data.draw(st.lists(st.sampled_from([*known, "a", " b"]), max_size=6))
    content, _, calls = summary(parse(parser_of(name), *"".join(pieces)))
    others = [piece for piece in pieces if piece != OWN[name]]
    if name not in ANYWHERE:  # those are calls only where the answer begins
        others = pieces[next((i for i, p in enumerate(pieces) if p != OWN[name]), len(pieces)) :]
    assert (content, len(calls)) == ("".join(others), len(pieces) - len(others))


def tool_with(**kinds: Any) -> dict[str, Any]:
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}


@pytest.mark.parametrize(
    ("name", "opening", "parameter", "closing"),
    [
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n",
            "<parameter={}>\n{}\n</parameter>",
            "\n</function>\n</tool_call>",
        ),
        (
            "glm45",
            "<tool_call>f\n",
            "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>",
            "\n</tool_call>",
        ),
        (
            "minimax_m2",
            '<minimax:tool_call>\n<invoke name="f">\n',
            '<parameter name="{}">{}</parameter>',
            "\n</invoke>\n</minimax:tool_call>",
        ),
    ],
)
def test_calls_have_the_types_of_their_schema(
    name: str, opening: str, parameter: str, closing: str
) -> None:
    values = {
        "s": "12",
        "n": "12",
        "o": '{"a": [1]}',
        "b": "yes",
        "q": '"q"',
        "u": "1",
        "m": "a\nb",
    }
    tool = tool_with(s="string", n="integer", o="object", b="boolean", q=["string", "null"])
    body = "\n".join(parameter.format(key, value) for key, value in values.items())
    text = f"So:\n{opening}{body}{closing}"
    content, _, (call,) = summary(parse(NOTATIONS[name].parser([tool]), *text))
    assert (content, call.name) == ("So:\n", "f")
    assert json.loads(call.arguments) == {**values, "n": 12, "o": {"a": [1]}}


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("12", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "12"),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("12", {"type": ["string", "null"]}, "12"),
        ("12", {"oneOf": [{"type": "string"}, {"type": "integer"}]}, 12),
        ("1.5", {"type": ["string", "integer"]}, "1.5"),
        ('{"a": 1}', {"type": ["string", "object"]}, {"a": 1}),
        ("12", {"anyOf": 3, "type": {}}, 12),
        ("True", {"type": "boolean"}, True),
        ("None", {"type": ["integer", "null"]}, None),
        ("True", {"type": "string"}, "True"),
        ("True", {"type": "integer"}, "True"),
    ],
)
def test_what_may_be_a_text_is_one(text: str, schema: Any, expected: Any) -> None:
    function = {"name": "f", "parameters": {"properties": {"x": schema}}}
    call = QWEN_CALL.replace("\n1\n", f"\n{text}\n")
    parser = NOTATIONS["qwen3_coder"].parser([{"type": "function", "function": function}])
    (made,) = summary(parse(parser, call))[2]
    assert json.loads(made.arguments) == {"x": expected}


def test_a_schema_that_is_none_leaves_texts() -> None:
    for parameters in ({"properties": [1]}, {"properties": {"x": 3}}, {}, None):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        (call,) = summary(parse(NOTATIONS["qwen3_coder"].parser([tool]), QWEN_CALL))[2]
        assert json.loads(call.arguments) == {"x": "1"}


def test_pythonic_calls() -> None:
    text = """ [f(x=1, y='it\\'s ]', z=[True, null, {"a": -1.5}]), mod.g()]\nafter"""
    content, _, (f, g) = summary(parse(parser_of("pythonic"), *text))
    assert (content, g) == ("\nafter", Call("mod.g", "{}"))
    assert json.loads(f.arguments) == {"x": 1, "y": "it's ]", "z": [True, None, {"a": -1.5}]}
    for wrong in ("[]", "[1]", "[f]", "[other()]", "f(x=1)", "[f (x=1)]"):
        assert summary(parse(parser_of("pythonic"), *wrong)) == (wrong, "", [])


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("1, 'b'", {"x": 1, "y": "b"}),
        ("x=y", {"x": "y"}),
        ("y=1e999, x=(1, 2)", {"y": None, "x": [1, 2]}),
        ("x={'a': 1,}, x=2", {"x": {"a": 1}}),
        ("x='it''s'", {"x": "it''s"}),
        ("**{}", {"x": "**"}),
    ],
)
def test_what_is_written_wrongly_between_brackets(written: str, arguments: Any) -> None:
    parser = NOTATIONS["pythonic"].parser([tool_with(x="string", y="string")])
    content, _, (call,) = summary(parse(parser, *f"[f({written})]"))
    assert (content, json.loads(call.arguments)) == ("", arguments)


def test_llama_calls() -> None:
    content, _, calls = summary(parse(parser_of("llama3_json"), *f"{LLAMA_CALL}; {LLAMA_CALL}"))
    assert (content, [call.name for call in calls]) == ("", ["f", "f"])
    assert json.loads(calls[0].arguments) == json.loads(ARGUMENTS)
    for wrong in ('{"x": 1}', '{"name": "other", "parameters": 1}', '{"name": "f', '{"type": "x"}'):
        assert summary(parse(parser_of("llama3_json"), *wrong)) == (wrong, "", [])


def test_hermes_calls_between_text() -> None:
    parts = parse(parser_of("hermes"), f"Let me see.\n{HERMES_CALL}\n{HERMES_CALL}\n")
    assert summary(parts) == ("Let me see.\n", "", [Call("f", ARGUMENTS)] * 2)


def test_deepseek_calls() -> None:
    text = f"<｜tool▁calls▁begin｜>{DEEPSEEK_CALL}\n{DEEPSEEK_CALL}<｜tool▁calls▁end｜>"
    assert summary(parse(parser_of("deepseek_v3"), text)) == ("", "", [Call("f", ARGUMENTS)] * 2)
    text = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        '<｜tool▁call▁begin｜>g<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    calls = [Call("f", "{}"), Call("g", '{"x": 1}')]
    assert summary(parse(parser_of("deepseek_v31"), text)) == ("", "", calls)


@pytest.mark.parametrize(
    ("notation", "opening"), [(NOTATIONS["mistral"], "[TOOL_CALLS]["), (ARRAY, "[")]
)
def test_calls_in_an_array(notation: Notation, opening: str) -> None:
    text = f'{opening}{{"name":"f","arguments":{ARGUMENTS}}}, {{"name": "g", "parameters": {{}}}}]'
    calls = [Call("f", ARGUMENTS), Call("g", "{}")]
    assert summary(parse(notation.parser(KNOWN), text)) == ("", "", calls)


def test_the_id_after_mistrals_arguments_is_no_content() -> None:
    call = f'{{"name": "f", "arguments": {ARGUMENTS}, "id": "abcdefgh1"}}'
    parts = parse(parser_of("mistral"), *f"[TOOL_CALLS] [{call}, {call}]")
    assert summary(parts) == ("", "", [Call("f", ARGUMENTS)] * 2)


def test_arguments_stream_as_they_come() -> None:
    parser = parser_of("hermes")
    assert not parser.push('<tool_call>{"name": "f", "argum')
    (begun, *more) = parser.push('ents": {"a": "b').calls
    assert (begun.index, begun.name, begun.arguments) == (0, "f", "")
    assert "".join(delta.arguments for delta in more) == '{"a": "b'
    assert [delta.arguments for delta in parser.push("c").calls] == ["c"]


def test_fields_in_another_order_are_a_call() -> None:
    text = '<tool_call>{"arguments": {"x": "é"}, "name": "f"}</tool_call>'
    (call,) = summary(parse(parser_of("hermes"), text))[2]
    assert (call.name, json.loads(call.arguments)) == ("f", {"x": "é"})


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{not json}</tool_call> after",
        "<tool_call>nothing that ends",
        '<tool_call>["name"]</tool_call>',
        "  <tool_call></tool_call>",
        "a <tool_call",
    ],
)
def test_malformed_calls_stay_text(text: str) -> None:
    assert summary(parse(parser_of("hermes"), text)) == (text, "", [])


def test_a_call_that_was_cut_off_keeps_what_came() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1'
    assert summary(parse(parser_of("hermes"), text)) == ("", "", [Call("f", '{"a": 1}')])
    whole = text + "}}\n</tool_"
    assert summary(parse(parser_of("hermes"), whole)) == ("", "", [Call("f", '{"a": 1}')])


@pytest.mark.parametrize(
    ("inside", "text", "content", "reasoning"),
    [
        (False, "<think>\nhm\n</think>\n\nyes", "\n\nyes", "\nhm\n"),
        (True, "hm</think>yes", "yes", "hm"),
        (True, "<think>hm</think>yes", "yes", "hm"),
        (True, "never ends </thi", "", "never ends </thi"),
        (False, "no <think>tags</think>", "no <think>tags</think>", ""),
        (False, "\n <th", "\n <th", ""),
    ],
)
def test_reasoning(inside: bool, text: str, content: str, reasoning: str) -> None:
    assert summary(parse(ThinkParser(inside), *text)) == (content, reasoning, [])


def test_a_prompt_that_ends_in_thinking() -> None:
    assert ends_in_thinking("<|im_start|>assistant\n<think>\n")
    assert not ends_in_thinking("<think>\n\n</think>\n\n")


def test_a_call_ends_reasoning_and_speaking_of_one_does_not() -> None:
    def parsed(text: str) -> Any:
        return summary(parse(NOTATIONS["hermes"].parser(KNOWN, ThinkParser(False)), *text))

    call = Call("f", ARGUMENTS)
    assert parsed(f"<think>hm{HERMES_CALL}") == ("", "hm", [call])
    assert parsed(f"<think>hm{HERMES_CALL}</think>So{HERMES_CALL}") == ("So", "hm", [call, call])
    spoken = 'A <tool_call> it is, {"name": "other"}.'
    assert parsed(f"<think>{spoken}</think>So </think>") == ("So </think>", spoken, [])


def test_a_named_call_is_all_arguments() -> None:
    assert summary(parse(one_call("f", None), "{", "}")) == ("", "", [Call("f", "{}")])


# Of every parser and every finder of spans one; the slow ones have the same with other tags.
QUICK_NOTATIONS = {"hermes", "mistral", "glm45", "pythonic", "openai"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK_NOTATIONS else pytest.mark.slow)
        for name in NOTATIONS
    ],
)
def test_white_space_without_an_end_is_looked_at_once(name: str) -> None:
    """A model that is caught in a loop writes it; with work that grows, this ends in a timeout."""
    white = " \n" * 75_000
    opening = NOTATIONS[name].opening
    text = white + opening + white
    assert summary(parse(parser_of(name), *text)) == (text, "", [])


def test_several_calls_in_one_tag() -> None:
    invoke = '<invoke name="{}">\n<parameter name="x">a\nb</parameter>\n</invoke>\n'
    text = f"<minimax:tool_call>\n{invoke.format('f')}{invoke.format('g')}</minimax:tool_call>"
    content, _, calls = summary(parse(parser_of("minimax_m2"), *text))
    assert (content, [call.name for call in calls]) == ("", ["f", "g"])
    assert json.loads(calls[1].arguments) == {"x": "a\nb"}


def test_a_parameter_that_says_itself_whether_it_is_a_text() -> None:
    (call,) = summary(parse(parser_of("deepseek_v32"), *DSML_CALL))[2]
    assert json.loads(call.arguments) == {"x": 1}
    (call,) = summary(parse(parser_of("deepseek_v32"), *DSML_CALL.replace("false", "true")))[2]
    assert json.loads(call.arguments) == {"x": "1"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("glm45", "<tool_call></tool_call>"),
        ("glm45", "<tool_call>other</tool_call>"),
        ("qwen3_coder", "Write <function=f> for f."),
        ("glm45", "<tool_call>f g</tool_call>"),
        ("minimax_m2", "<minimax:tool_call></minimax:tool_call>"),
        ("minimax_m2", '<minimax:tool_call><invoke name="f">x</invoke></minimax:tool_call>'),
        ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>other<|tool_call_end|>"),
    ],
)
def test_a_call_that_is_written_wrongly_stays(name: str, text: str) -> None:
    assert summary(parse(parser_of(name), *text)) == (text, "", [])


def test_a_glm_call_without_arguments() -> None:
    assert summary(parse(parser_of("glm45"), "<tool_call>now\n</tool_call>"))[2] == [
        Call("now", "{}")
    ]


def test_kimi_calls_have_the_ids_that_the_model_gave_them() -> None:
    call = "<|tool_call_begin|>functions.{0}<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
    text = f"Well.{KIMI_CALL.replace(ARGUMENTS, '{}').replace('f:0', 'f:3')}"
    text = text.replace("<|tool_calls_section_end|>", call.format("g.h:4"))
    parts = parse(parser_of("kimi_k2"), *f"{text}<|tool_calls_section_end|>")
    named = [delta for delta in parts.calls if delta.name]
    assert [(delta.name, delta.id) for delta in named] == [
        ("f", "functions.f:3"),
        ("g.h", "functions.g.h:4"),
    ]
    assert (parts.content, [c.arguments for c in whole_calls(parts.calls)]) == ("Well.", ["{}"] * 2)


@pytest.mark.parametrize("name", ["granite", "hunyuan_a13b", "mistral"])
def test_arrays_of_calls_behind_a_tag(name: str) -> None:
    array = f'[{{"name": "f", "arguments": {ARGUMENTS}}}, {{"name": "g", "arguments": {{}}}}]'
    around = {
        "granite": "<|tool_call|>{}",
        "hunyuan_a13b": "<tool_calls>\n{}\n</tool_calls>",
        "mistral": "[TOOL_CALLS]{}",
    }
    content, _, calls = summary(parse(parser_of(name), *around[name].format(array)))
    assert (content, calls) == ("", [Call("f", ARGUMENTS), Call("g", "{}")])


def test_mistrals_newer_calls() -> None:
    text = f"So.[TOOL_CALLS]f[ARGS]{ARGUMENTS}[TOOL_CALLS]g[CALL_ID]abcdefgh1[ARGS]{{}}"
    parts = parse(parser_of("mistral_v11"), *text)
    assert (parts.content, whole_calls(parts.calls)) == (
        "So.",
        [Call("f", ARGUMENTS), Call("g", "{}")],
    )
    assert [delta.id for delta in parts.calls if delta.name] == [None, "abcdefgh1"]
    for wrong in ("[TOOL_CALLS]f", "[TOOL_CALLS]f[ARGS]", "[TOOL_CALLS]f g[ARGS]{}"):
        assert summary(parse(parser_of("mistral_v11"), *wrong)) == (wrong, "", [])
    both = "[TOOL_CALLS]f g[TOOL_CALLS]h[ARGS]{}"
    expected = ("[TOOL_CALLS]f g", "", [Call("h", "{}")])
    assert summary(parse(parser_of("mistral_v11"), *both)) == expected


def test_thoughts_between_other_tags() -> None:
    parser = ThinkParser(False, MISTRAL_TAGS)
    assert summary(parse(parser, *"[THINK]hm[/THINK]So <think>")) == ("So <think>", "hm", [])


THOUGHT, _, FINAL, CALL_HEADER, *_ = HARMONY


def test_harmony_channels() -> None:
    text = (
        f"{THOUGHT}<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        f"<|start|>assistant{CALL_HEADER}{ARGUMENTS}<|call|>"
        f"<|start|>assistant{FINAL}Done.<|return|>"
    )
    assert summary(parse(channels(OFFERED), *text)) == (
        "I look.Done.",
        "hm",
        [Call("f", ARGUMENTS)],
    )
    assert summary(parse(channels(None), *text)) == (f"I look.{ARGUMENTS}Done.", "hm", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" to=functions.f<|channel|>commentary json<|message|>{}<|call|>", ("", "", "f")),
        ("<|channel|>analysis to=browser.search code<|message|>{}<|call|>", ("", "{}", "")),
        ("<|channel|>commentary to=python<|message|>1<|call|>", ("", "1", "")),
        (f"{THOUGHT}<|start|>assistant<|channel|>fin", ("", "hm", "")),
        (f"{FINAL}cut <|", ("cut <|", "", "")),
        (" plain text", (" plain text", "", "")),
        ("to=func", ("to=func", "", "")),
        ("", ("", "", "")),
    ],
)
def test_harmony_headers(text: str, expected: tuple[str, str, str]) -> None:
    content, reasoning, calls = summary(parse(channels(OFFERED), *text))
    assert (content, reasoning, "".join(call.name for call in calls)) == expected


def test_harmony_tells_when_it_thinks() -> None:
    parser = channels(OFFERED)
    seen = []
    for piece in ("<|channel|>", "analysis<|message|>", "hm", "<|end|>", FINAL, "x"):
        parser.push(piece)
        seen.append(parser.thinking)
    assert seen == [None, True, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "repeated", "around"),
    [
        ("glm45", " ", "<tool_call>f<arg_key>{}</tool_call>"),
        ("glm45", " ", "<tool_call>f<arg_key>x</arg_key><arg_value></arg_value>{}x</tool_call>"),
        ("glm45", "<arg_key>x</arg_key><arg_value>", "<tool_call>f{}</tool_call>"),
        ("qwen3_coder", "<parameter=x>", "<tool_call><function=f>{}</function></tool_call>"),
        ("minimax_m2", '<invoke name="f">', "<minimax:tool_call>{}</minimax:tool_call>"),
        (
            "minimax_m2",
            '<parameter name="x">',
            '<minimax:tool_call><invoke name="f">{}</invoke></minimax:tool_call>',
        ),
        ("hermes", " ", '<tool_call>{{"name": "f", "arguments": {{}}{}x</tool_call>'),
    ],
)
def test_what_a_model_repeats_without_end_is_read_once(
    name: str, repeated: str, around: str
) -> None:
    text = around.format(repeated * (200_000 // len(repeated)))
    began = process_time()
    content, _, _ = summary(parse(parser_of(name), text))
    assert process_time() - began < 2  # else nobody is served meanwhile
    assert content.strip() in text


def test_an_id_behind_mistrals_arguments_is_no_content() -> None:
    call = '{{"name": "f", "arguments": {{}}, "id": "{}"}}'
    text = f"[TOOL_CALLS][{call.format('VvvODy9mT')}, {call.format('a')}] "
    assert summary(parse(parser_of("mistral"), *text)) == ("", "", [Call("f", "{}")] * 2)


def test_a_harmony_call_without_arguments() -> None:
    for ending in ("", "\n", "<|call|>", "<|end|><|start|>assistant"):
        _, _, (call,) = summary(parse(channels(OFFERED), *f"{CALL_HEADER}{ending}"))
        assert (call.name, json.loads(call.arguments)) == ("f", {})


@pytest.mark.parametrize(("name", "opening", "repeated"), ENDLESS)
def test_tokens_without_end_cost_what_they_cost_at_first(
    name: str, opening: str, repeated: str
) -> None:
    text = opening + repeated * (100_000 // len(repeated))
    parser = NOTATIONS[name].parser(KNOWN, ThinkParser(False))
    began = process_time()
    for place in range(0, len(text), 4):
        parser.push(text[place : place + 4])
    parser.finish()
    assert process_time() - began < 2  # it takes 0.3; work that grows took 5 and more
