"""Tools and reasoning over HTTP, with the official client; the model's words are a script's."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.messages.requests import Submit
from megainfer.text.tokenizer import Tokenizer
from server.parsing.parts import CallDelta, whole_calls
from tests.support.scripted_server import RunningServer, byte_level_backend, write_tokenizer
from tests.support.tools import CALL, TEMPLATE, prompt_of, saying

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
QUESTION = [{"role": "user", "content": "1 + x?"}]
BROKEN = {"type": "object", "$defs": [1]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tools")
    return Tokenizer.load(write_tokenizer(folder, byte_level_backend(), chat_template=TEMPLATE))


@pytest.fixture(scope="module")
def server(tokenizer) -> Iterator[RunningServer]:
    with RunningServer(tokenizer) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    while not server.node.heard.empty():  # what earlier tests have said
        server.node.heard.get()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", **{"messages": QUESTION, "tools": [TOOL], **options}
    )


def test_a_call_and_what_was_said_before_it(server, client, tokenizer):
    server.node.script = saying(tokenizer, f"Let me see.\n{CALL}\n{CALL}")
    (choice,) = chat(client).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see.\n"
    first, second = choice.message.tool_calls
    assert (first.function.name, json.loads(first.function.arguments)) == ("add", {"x": 1})
    assert first.id != second.id
    assert '"name": "add"' in prompt_of(server, tokenizer)


def test_calls_stream(server, client, tokenizer):
    server.node.script = saying(tokenizer, f"Well.{CALL}")
    deltas, content, finish = [], "", None
    for chunk in chat(client, stream=True):
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for call in choice.delta.tool_calls or []:
            assert bool(call.id) == bool(call.function.name)
            deltas.append(CallDelta(call.index, call.function.name, call.function.arguments))
    (call,) = whole_calls(deltas)
    assert (call.name, call.arguments, content, finish) == (
        "add",
        '{"x": 1}',
        "Well.",
        "tool_calls",
    )
    assert len(deltas) > 3


def test_one_call_where_parallel_ones_are_not_wanted(server, client, tokenizer):
    server.node.script = saying(tokenizer, CALL + CALL)
    message = chat(client, parallel_tool_calls=False).choices[0].message
    assert len(message.tool_calls) == 1
    assert message.content is None


def test_no_tools_no_calls(server, client, tokenizer):
    server.node.script = saying(tokenizer, CALL)
    choice = chat(client, tool_choice="none").choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
    assert "Tools" not in prompt_of(server, tokenizer)


def test_calls_and_results_of_a_chat_reach_the_template(server, client, tokenizer):
    server.node.script = saying(tokenizer, "2")
    function = {"name": "add", "arguments": '{"x": 1}'}
    called = {"id": "call_1", "type": "function", "function": function}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    chat(client, messages=messages)
    assert "assistant: [add(1)]tool: 2assistant: " in prompt_of(server, tokenizer)


def test_half_a_character_in_a_call_goes_back_to_the_model(server, client, tokenizer):
    server.node.script = saying(tokenizer, "2")
    function = {"name": "add", "arguments": '{"x": "a\\ud83d"}'}  # as a model once wrote it
    called = {"id": "call_1", "type": "function", "function": function}
    chat(client, messages=[*QUESTION, {"role": "assistant", "tool_calls": [called]}])
    assert "[add(a?)]" in prompt_of(server, tokenizer)


def test_reasoning_has_a_field_of_its_own(server, client, tokenizer):
    server.node.script = saying(tokenizer, f"1 + 1 </think>2{CALL}")
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    message = chat(client, extra_body=thinking).choices[0].message
    assert (message.reasoning, message.reasoning_content) == ("1 + 1 ", "1 + 1 ")
    assert (message.content, len(message.tool_calls)) == ("2", 1)
    chunks = list(chat(client, extra_body=thinking, stream=True))
    parts = [getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks]
    assert "".join(parts) == "1 + 1 "


def test_a_template_is_told_the_effort_that_is_asked_for(server, client, tokenizer):
    chat(client, reasoning_effort="high")
    assert prompt_of(server, tokenizer).endswith("effort: high\nassistant: ")
    client.responses.create(model="tiny", input="1 + x?", reasoning={"effort": "low"})
    assert prompt_of(server, tokenizer).endswith("effort: low\nassistant: ")
    chat(client, extra_body={"chat_template_kwargs": {"reasoning_effort": "its own"}})
    assert prompt_of(server, tokenizer).endswith("effort: its own\nassistant: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": [{"type": "web"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "is no name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "description": {}}}]}, "string"),
        ({"tools": [TOOL, TOOL]}, "one name twice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": BROKEN}}]},
            "tools[0].function.parameters.$defs must be an object",
        ),
        ({"tools": [], "tool_choice": "required"}, "tools is empty"),
        ({"tool_choice": "always"}, "tool_choice must be"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "isn't among tools"),
        ({"messages": [{"role": "user", "content": None}]}, "must be a string"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"arguments": "{x"}}],
                    }
                ]
            },
            "functions with names",
        ),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "exclude each other",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"extra_body": {"structured_outputs": {"regex": "a", "choice": ["b"]}}}, "exclude"),
        ({"extra_body": {"structured_outputs": {"yaml": 1}}}, "yaml isn't offered"),
    ],
)
def test_wrong_wishes_are_refused_by_name(client, options, words):
    with pytest.raises(openai.BadRequestError, match=re.escape(words)):
        chat(client, **options)


def test_who_always_thinks_is_held_to_a_shape_after_that(tmp_path):
    backend = byte_level_backend()
    backend.add_special_tokens(["</think>"])
    folder = write_tokenizer(tmp_path, backend, chat_template=TEMPLATE)
    tokenizer = Tokenizer.load(folder)
    ends = GenerationDefaults((0,))
    syntax = SyntaxOptions(reasoning_parser="deepseek_r1")
    with RunningServer(tokenizer, ends, folder=folder, syntax=syntax) as server:
        server.node.script = saying(tokenizer, 'Hm.</think>{"x": 1}')
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            (choice,) = chat(client, response_format={"type": "json_object"}).choices
        assert (choice.message.reasoning, choice.message.content) == ("Hm.", '{"x": 1}')
        grammar = server.node.expect(Submit).grammar
        assert grammar is not None
        assert grammar.after == tokenizer.token_id("</think>")


def test_tags_of_calls_that_are_special_tokens_are_seen(tmp_path):
    backend = byte_level_backend()
    backend.add_special_tokens(["<tool_call>", "</tool_call>"])
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, backend, chat_template=TEMPLATE))
    with RunningServer(tokenizer) as server:
        server.node.script = saying(tokenizer, f"So.{CALL}")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            (choice,) = chat(client).choices
    assert choice.message.content == "So."
    assert [call.function.name for call in choice.message.tool_calls] == ["add"]
