"""Calls in the forms that models really write, one by one, by what reports say of each family."""

import json
from typing import Any

import pytest

from server.parsing.notations import ARRAY, NOTATIONS, channels, one_call, plain
from server.parsing.offered import Offered
from server.parsing.parts import Parts, whole_calls
from server.parsing.reasoning import ThinkParser

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("read", path=TEXT, limit=NUMBER),
    tool("get_weather", city=TEXT, x={"type": "number"}),
    tool("get", p=TEXT),
    tool("now"),
    tool("ns.do-it", p=TEXT),
]
Calls = list[tuple[str, Any]]


def parsed(parser: Any, *pieces: str) -> Parts:
    parts = Parts()
    for piece in pieces:
        parts.add(parser.push(piece))
    parts.add(parser.finish())
    return parts


def read(name: str, text: str, thoughts: bool | None = None) -> tuple[str, str, Calls]:
    """Content, reasoning and calls, the same whole and by characters."""

    def parser() -> Any:
        around = ("<answer>", "<response>")
        thinking = None if thoughts is None else ThinkParser(thoughts, around=around)
        return NOTATIONS[name].parser(TOOLS, thinking)

    whole, pieces = parsed(parser(), text), parsed(parser(), *text)
    made = [(call.name, json.loads(call.arguments)) for call in whole_calls(whole.calls)]
    assert whole_calls(pieces.calls) == whole_calls(whole.calls)
    assert (pieces.content, pieces.reasoning) == (whole.content, whole.reasoning)
    return whole.content, whole.reasoning, made


P = (
    "<function=read>\n<parameter=path>\n/a.txt\n</parameter>\n<parameter=limit>\n5\n</parameter>\n"
    "</function>"
)
READ = ("read", {"path": "/a.txt", "limit": 5})
NOW: tuple[str, Any] = ("now", {})


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"Let me see.\n\n<tool_call>\n{P}\n</tool_call>", "Let me see.\n\n", [READ]),
        (f"Let me see.\n\n{P}\n</tool_call>", "Let me see.\n\n", [READ]),
        (f"Let me see.\n\n{P}", "Let me see.\n\n", [READ]),
        (f"{P}\n</tool_call>", "", [READ]),
        (f"<tool_call>\n{P}", "", [READ]),
        (f"<tool_call>\n{P[:-11]}</tool_call>", "", [READ]),
        ("<tool_call>\n" + P.replace("5\n</parameter>", "5") + "\n</tool_call>", "", [READ]),
        ("<tool_call>\n" + P.replace("t\n</parameter>", "t") + "\n</tool_call>", "", [READ]),
        (f"<tool_call>\n{P}\n<function=now>\n</function>\n</tool_call>", "", [READ, NOW]),
        ("<tool_call>\n<function=now>\n</function>\n</tool_call>", "", [NOW]),
        ("<tool_call>\n<function=now></function></tool_call> Done", " Done", [NOW]),
        (
            "<tool_call>\n<function=read>\n<parameter=path>\nan </tool_call> in it\n</parameter>\n"
            "</function>\n</tool_call>",
            "",
            [("read", {"path": "an </tool_call> in it"})],
        ),
        (
            "<tool_call>\n<function=read>\n<parameter=path>\na </parameter> b\n</parameter>\n"
            "</function>\n</tool_call>",
            "",
            [("read", {"path": "a </parameter> b"})],
        ),
        (
            "<tool_call>\n<function=read>\n<parameter=path>\na <parameter=x> b\n</parameter>\n"
            "</function>\n</tool_call>",
            "",
            [("read", {"path": "a <parameter=x> b"})],
        ),
        (
            "<tool_call>\n<function=read>\n<parameter=path>\n/a.txt\n</tool_call>\nDone.",
            "\nDone.",
            [("read", {"path": "/a.txt"})],
        ),
        (
            '<tool_call>\n{"name": "read", "arguments": {"path": "/a.txt"}}\n</tool_call>',
            "",
            [("read", {"path": "/a.txt"})],
        ),
        (
            '<function=read>{"path": "/a.txt"}</function>',
            "",
            [("read", {"path": "/a.txt"})],
        ),
        ("Use <tool_call> like so, and then stop.", "Use <tool_call> like so, and then stop.", []),
        ("Use <function=read> to read.", "Use <function=read> to read.", []),
        ("<function=other>\n</function>", "<function=other>\n</function>", []),
    ],
)
def test_qwen3_coder(text: str, content: str, calls: Calls) -> None:
    assert read("qwen3_coder", text) == (content, "", calls)


B, E = "<tool_call>\n", "\n</tool_call>"
GET = ("get", {"p": "x"})
X = '{"name": "get", "arguments": {"p": "x"}}'
N = '{"name": "now", "arguments": {}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"{B}{X}{E}", [GET]),
        (B + '{"name": "get", "arguments": "{\\"p\\": \\"x\\"}"}' + E, [GET]),
        (B + '{"name": "get", "arguments": "\\"{\\\\\\"p\\\\\\": \\\\\\"x\\\\\\"}\\""}' + E, [GET]),
        (B + '{"name": "now", "arguments": ""}' + E, [NOW]),
        (B + '{"name": "now", "arguments": null}' + E, [NOW]),
        (B + '{"name": "now", "arguments": None}' + E, [NOW]),
        (B + '{"name": "now", "arguments": []}' + E, [NOW]),
        (B + '{"name": "get", "arguments": [{"p": "x"}]}' + E, [GET]),
        (B + '{"name": "now"}' + E, [NOW]),
        (B + '{"name": "now"' + E, [NOW]),
        (B + '{"arguments": {"p": "x"}, "name": "get"}' + E, [GET]),
        (B + '{"type": "function", "name": "get", "arguments": {"p": "x"}}' + E, [GET]),
        (B + '{"type": "function", "function": ' + X + "}" + E, [GET]),
        (B + '{"name": "get", "arguments": {"p": "x"}, "id": "1"}' + E, [GET]),
        (B + '{"name": "get", "parameters": {"p": "x"}}' + E, [GET]),
        (B + "{'name': 'get', 'arguments': {'p': 'x'}}" + E, [GET]),
        (B + X.replace('"x"', '"a </tool_call> b"') + E, [("get", {"p": "a </tool_call> b"})]),
        (B + X.replace('"x"', '"a\nb\x00"') + E, [("get", {"p": "a\nb\x00"})]),
        (B + X.replace('"x"', '"a "b" c"') + E, [("get", {"p": 'a "b" c'})]),
        (B + X.replace('"x"', '"x') + E, [("get", {"p": "x}}\n"})]),
        (f"{B}{X}\n{N}{E}", [GET, NOW]),
        (f"{B}[{X}, {N}]{E}", [GET, NOW]),
        (f"{B}{X}", [GET]),
        (f"{B}{X}\n{B}{N}{E}", [GET, NOW]),
        (f"{B}{X}}}{E}", [GET]),
        (f"{B}{X[:-1]}{E}", [GET]),
        (f"{B}{X}{E}\n{B}{N}{E}", [GET, NOW]),
        (f"{X}{E}", [GET]),
        (f"{B}{X.replace('get', 'functions.get')}{E}", [GET]),
        (f"{B}{X.replace('get', 'Get')}{E}", [GET]),
    ],
)
def test_hermes(text: str, calls: Calls) -> None:
    assert read("hermes", text) == ("", "", calls)


@pytest.mark.parametrize("text", [f"{B}{X}{E}\nDone.", f"{B}{X}{E}\nDone. </tool_call>"])
def test_what_stands_behind_calls_is_content(text: str) -> None:
    assert read("hermes", text) == (text.partition(E)[2], "", [GET])


@pytest.mark.parametrize(
    ("name", "around"),
    [
        ("granite", "<|tool_call|>[{}]"),
        ("mistral", "[TOOL_CALLS][{}]"),
        ("mistral", "[TOOL_CALLS] {}"),
        ("hunyuan_a13b", "<tool_calls>[{}]</tool_calls>"),
        ("hunyuan_a13b", "<tool_calls>\n{}\n</tool_calls>"),
        ("llama3_json", "{}"),
        ("llama3_json", "<|python_tag|>{}<|eom_id|>"),
        ("kimi_k2", "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"),
    ],
)
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (X, GET),
        ('{"name": "get", "arguments": "{\\"p\\": \\"x\\"}"}', GET),
        ('{"name": "now", "arguments": null}', NOW),
        ('{"name": "now"}', NOW),
        ('{"arguments": {"p": "x"}, "name": "get"}', GET),
    ],
)
def test_other_notations_of_objects(name: str, around: str, call: str, expected: Any) -> None:
    assert read(name, around.replace("{}", call)) == ("", "", [expected])


ANALYSIS = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
J = '{"city": "Oslo"}'
WEATHER = ("get_weather", {"city": "Oslo"})


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.get_weather json<|message|>",
        "<|channel|>commentary to=functions.get_weatherjson<|message|>",
        "<|channel|>commentary to=functions.get_weather<|constrain|>json<|message|>",
        "<|channel|>analysis to=functions.get_weather code<|message|>",
        "<|channel|>commentary to=get_weather <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions/get_weather <|constrain|>json<|message|>",
        "<|channel|>final to=functions.get_weather <|constrain|>json<|message|>",
        "<|channel|>commentary<|constrain|>functions.get_weather<|message|>",
        "<|channel|>commentary to=functions.get-weather<|message|>",
    ],
)
def test_gpt_oss(header: str) -> None:
    assert read("openai", f"{ANALYSIS}{header}{J}<|call|>") == ("", "hm", [WEATHER])
    assert read("openai", f"{ANALYSIS}{header}{J}") == ("", "hm", [WEATHER])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"{ANALYSIS}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
            f"<|channel|>commentary to=functions.now<|message|><|call|>",
            ("I look.", "hm", [NOW]),
        ),
        (
            ANALYSIS + '<|channel|>final <|constrain|>json<|message|>{"a": 1}<|return|>',
            ('{"a": 1}', "hm", []),
        ),
        (f"{ANALYSIS}<|channel|>comment<|message|>It rains.<|return|>", ("It rains.", "hm", [])),
        ("<|message|>It rains.<|return|>", ("It rains.", "", [])),
        (
            f"{ANALYSIS}<|channel|>commentary to=functions.other<|message|>{J}<|call|>",
            ("", f"hm{J}", []),
        ),
        ("<|channel|>final It rains.<|return|>", ("It rains.", "", [])),
        ("<|channel|>final" + " It rains." * 60, (("It rains. " * 60).rstrip(), "", [])),
        (
            "<|channel|>commentary to=functions.read<|message|>{'path': 'a', limit: 3,}<|call|>",
            ("", "", [("read", {"path": "a", "limit": 3})]),
        ),
    ],
)
def test_other_messages_of_gpt_oss(text: str, expected: Any) -> None:
    content, reasoning, calls = read("openai", text)
    assert (content.lstrip(), reasoning, calls) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("glm45", "<tool_call>now</tool_call>", NOW),
        ("glm45", "<tool_call>now\n</tool_call>", NOW),
        (
            "glm45",
            "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>",
            WEATHER,
        ),
        (
            "glm45",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>a\nb</arg_value>\n"
            "</tool_call>",
            ("get_weather", {"city": "a\nb"}),
        ),
        (
            "glm45",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n",
            WEATHER,
        ),
        (
            "glm45",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>a </tool_call> b"
            "</arg_value>\n</tool_call>",
            ("get_weather", {"city": "a </tool_call> b"}),
        ),
        (
            "glm45",
            "get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
            WEATHER,
        ),
        (
            "minimax_m2",
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo'
            "</parameter>\n</invoke>\n",
            WEATHER,
        ),
        (
            "minimax_m2",
            '<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n</invoke>',
            WEATHER,
        ),
        (
            "minimax_m2",
            '<minimax:tool_call>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
            NOW,
        ),
        (
            "minimax_m2",
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city"><parameter>\n'
            "<b></b>\n</parameter></parameter>\n</invoke>\n</minimax:tool_call>",
            ("get_weather", {"city": "<parameter>\n<b></b>\n</parameter>"}),
        ),
        (
            "deepseek_v32",
            '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="read">\n<｜DSML｜parameter name="limit" '
            'string="false">5</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
            ("read", {"limit": 5}),
        ),
        ("kimi_k2", "<|tool_call_begin|>now:0<|tool_call_argument_begin|>{}", NOW),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
            f"{J}<|tool_call_end|>",
            WEATHER,
        ),
        ("mistral_v11", f"[TOOL_CALLS]get_weather{J}", WEATHER),
        ("mistral_v11", f"get_weather[ARGS]{J}", WEATHER),
        ("mistral_v11", "[TOOL_CALLS]ns.do-it[ARGS]{}", ("ns.do-it", {})),
        ("pythonic", "[get_weather(city='Oslo')]", WEATHER),
        ("pythonic", "Well:\n[get_weather('Oslo')]", WEATHER),
        ("pythonic", "<|python_start|>[get_weather(city='Oslo')]<|python_end|>", WEATHER),
        (
            "deepseek_v3",
            f"function<｜tool▁sep｜>get_weather\n```json\n{J}\n```<｜tool▁call▁end｜>",
            WEATHER,
        ),
        ("deepseek_v31", "<｜tool▁call▁begin｜>now<｜tool▁sep｜>null<｜tool▁call▁end｜>", NOW),
    ],
)
def test_other_families(name: str, text: str, expected: tuple[str, Any]) -> None:
    content, _, calls = read(name, text)
    assert (content.removeprefix("Well:\n"), calls) == ("", [expected])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.read:0"
            '<|tool_call_argument_begin|>{"path": "/"}<|tool_call_end|>'
            "<|tool_calls_section_end|>",
        ),
        ("hermes", f'{B}{{"name": "read", "arguments": {{"path": "/"}}}}{E}'),
        ("qwen3_coder", f"{B}<function=read>\n<parameter=path>\n/\n</parameter>\n</function>{E}"),
        (
            "minimax_m2",
            '<minimax:tool_call>\n<invoke name="read">\n<parameter name="path">/</parameter>\n'
            "</invoke>\n</minimax:tool_call>",
        ),
        ("glm45", f"<tool_call>read\n<arg_key>path</arg_key>\n<arg_value>/</arg_value>{E}"),
        (
            "deepseek_v31",
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>read<｜tool▁sep｜>{"path": "/"}'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        ("mistral_v11", '[TOOL_CALLS]read[ARGS]{"path": "/"}'),
        (
            "deepseek_v32",
            '<｜DSML｜function_calls>\n<｜DSML｜invoke name="read">\n'
            '<｜DSML｜parameter name="path" string="true">/</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        ),
    ],
)
def test_a_call_ends_thinking(name: str, call: str) -> None:
    expected = [("read", {"path": "/"})]
    assert read(name, f"I look.{call}", thoughts=True) == ("", "I look.", expected)
    assert read(name, f"I look.</think>{call}", thoughts=True) == ("", "I look.", expected)
    assert read(name, f"<think>I look.{call}", thoughts=False) == ("", "I look.", expected)
    text = f"I look.{call}</think>\n\nDone."
    assert read(name, text, thoughts=True) == ("\n\nDone.", "I look.", expected)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("hm</think>\n<answer>\nIt is 4.\n</answer>", "It is 4."),
        ("hm\n</think>\n\n<response>\nIt is 4.\n</response>\n", "It is 4."),
        ("hm</think><answer>It is </answer> 4.</answer>", "It is </answer> 4."),
        ("hm</think><answer>It is 4.", "It is 4."),
        ("hm</think><answer>It is 4.\n</ans", "It is 4.\n</ans"),
        ("hm</think><answer>It is 4.</answer> So.", "It is 4.</answer> So."),
        ("hm</think>It is <answer>4</answer>", "It is <answer>4</answer>"),
        ("hm</think>\n\n<answ", "\n\n<answ"),
        ("hm</think>\n\n", "\n\n"),
    ],
)
def test_tags_around_an_answer(text: str, content: str) -> None:
    def parser() -> Any:
        return plain(ThinkParser(True, around=("<answer>", "<response>")))

    for pieces in ([text], list(text)):
        parts = parsed(parser(), *pieces)
        assert (parts.content, parts.reasoning.strip()) == (content, "hm")
    assert parsed(plain(ThinkParser(True)), text).content == text.partition("</think>")[2]


def test_an_answer_in_tags_with_a_call() -> None:
    text = f"hm</think><answer>I look.</answer>\n{B}{X}{E}"
    assert read("hermes", text, thoughts=True) == ("I look.", "hm", [GET])


@pytest.mark.parametrize("cut", range(1, len(X)))
def test_arguments_of_a_call_that_must_be_are_json_wherever_they_end(cut: int) -> None:
    array = parsed(ARRAY.parser(TOOLS), f"[{X}"[:cut])
    named = parsed(one_call("get", None), '{"p": "x", "q": [1, {"a": null}]}'[:cut])
    for parts in (array, named):
        for call in whole_calls(parts.calls):
            assert isinstance(json.loads(call.arguments), dict)
    assert [call.name for call in whole_calls(named.calls)] == ["get"]


def test_tools_that_nobody_offered_are_content_of_channels_without_any() -> None:
    text = f"<|channel|>commentary to=functions.f<|message|>{J}<|call|>"
    assert parsed(channels(None), text).content == J
    assert parsed(channels(Offered(TOOLS)), text).reasoning == J
