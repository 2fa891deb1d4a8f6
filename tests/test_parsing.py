"""Parsers of model text: whatever the cuts, the same parts; nothing lost, no tag in the content."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.parsing.answer_parser import AnswerParser
from server.parsing.calls import CallParser, OneCall
from server.parsing.formats import (
    ARRAY,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    FORMATS,
    HERMES,
    MISTRAL,
    CallFormat,
)
from server.parsing.parts import Call, Parser, Parts, whole_calls
from server.parsing.reasoning import ThinkParser, ends_in_thinking

HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "}<\\"", "b": [1, {}]}}\n</tool_call>'
DEEPSEEK_CALL = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"a": "}<\\"", "b": [1, {}]}\n```<｜tool▁call▁end｜>'
)
ARGUMENTS = '{"a": "}<\\"", "b": [1, {}]}'


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
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(FRAGMENTS, max_size=8).map("".join), st.data())
@pytest.mark.parametrize("name", [None, "array", *FORMATS])
@pytest.mark.parametrize("inside", [None, False, True])
def test_the_cuts_do_not_matter(
    name: str | None, inside: bool | None, text: str, data: st.DataObject
) -> None:
    def parser() -> AnswerParser:
        reasoning = None if inside is None else ThinkParser(inside)
        formats = {**FORMATS, "array": ARRAY}
        return AnswerParser(reasoning, CallParser(formats[name]) if name else None)

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = summary(parse(parser(), text))
    assert summary(parse(parser(), *pieces)) == whole
    assert summary(parse(parser(), *text)) == whole


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet='<>/_tolcahink{}[]" \n:,', max_size=60))
@pytest.mark.parametrize("name", list(FORMATS))
def test_text_without_a_call_stays_as_it_is(name: str, text: str) -> None:
    assert summary(parse(CallParser(FORMATS[name]), *text)) == (text, "", [])


def test_hermes_calls_between_text() -> None:
    parts = parse(CallParser(HERMES), f"Let me see.\n{HERMES_CALL}\n{HERMES_CALL}\n")
    assert summary(parts) == ("Let me see.\n", "", [Call("f", ARGUMENTS)] * 2)


def test_deepseek_calls() -> None:
    text = f"<｜tool▁calls▁begin｜>{DEEPSEEK_CALL}\n{DEEPSEEK_CALL}<｜tool▁calls▁end｜>"
    assert summary(parse(CallParser(DEEPSEEK_V3), text)) == ("", "", [Call("f", ARGUMENTS)] * 2)
    text = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        '<｜tool▁call▁begin｜>g<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    calls = [Call("f", "{}"), Call("g", '{"x": 1}')]
    assert summary(parse(CallParser(DEEPSEEK_V31), text)) == ("", "", calls)


@pytest.mark.parametrize(("call_format", "opening"), [(MISTRAL, "[TOOL_CALLS]["), (ARRAY, "[")])
def test_calls_in_an_array(call_format: CallFormat, opening: str) -> None:
    text = f'{opening}{{"name":"f","arguments":{ARGUMENTS}}}, {{"name": "g", "parameters": {{}}}}]'
    calls = [Call("f", ARGUMENTS), Call("g", "{}")]
    assert summary(parse(CallParser(call_format), text)) == ("", "", calls)


def test_arguments_stream_as_they_come() -> None:
    parser = CallParser(HERMES)
    assert not parser.push('<tool_call>{"name": "f", "argum')
    (begun,) = parser.push('ents": {"a"').calls[:1]
    assert (begun.index, begun.name, begun.arguments) == (0, "f", "")
    assert [delta.arguments for delta in parser.push(": 1").calls] == [": 1"]


def test_fields_in_another_order_are_a_call() -> None:
    text = '<tool_call>{"arguments": {"x": "é"}, "name": "f"}</tool_call>'
    (call,) = summary(parse(CallParser(HERMES), text))[2]
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
    assert summary(parse(CallParser(HERMES), text)) == (text, "", [])


def test_a_call_that_was_cut_off_keeps_what_came() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1'
    assert summary(parse(CallParser(HERMES), text)) == ("", "", [Call("f", '{"a": 1')])
    whole = text + "}}\n</tool_"
    assert summary(parse(CallParser(HERMES), whole)) == ("", "", [Call("f", '{"a": 1}')])


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


def test_reasoning_may_speak_of_calls() -> None:
    parser = AnswerParser(ThinkParser(False), CallParser(HERMES))
    parts = parse(parser, *f"<think>{HERMES_CALL}?</think>{HERMES_CALL}")
    assert summary(parts) == ("", f"{HERMES_CALL}?", [Call("f", ARGUMENTS)])


def test_a_named_call_is_all_arguments() -> None:
    assert summary(parse(OneCall("f"), "{", "}")) == ("", "", [Call("f", "{}")])
