"""gpt-oss's channels over HTTP; the model's words are a script's."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.messages.requests import FinishReason, Submit, TokenEvent
from megainfer.text.tokenizer import Tokenizer
from server.parsing.harmony import FINAL
from tests.support.scripted_server import RunningServer, Script, byte_level_backend, write_tokenizer

TAGS = ["start", "channel", "message", "constrain", "end", "call", "return"]
TEMPLATE = (
    "{% if tools %}namespace functions: {{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.thinking }}{{ m.content }}<|end|>"
    "{% endfor %}<|start|>assistant{# answers on <|channel|>s #}"
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
THOUGHT = "<|channel|>analysis<|message|>1 and 1<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"x": 1}<|call|>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    backend = byte_level_backend()
    backend.add_special_tokens([f"<|{tag}|>" for tag in TAGS])
    return write_tokenizer(tmp_path_factory.mktemp("channels"), backend, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def server(folder, tokenizer) -> Iterator[RunningServer]:
    ends = tuple(tokenizer.token_id(f"<|{tag}|>") for tag in ("return", "call"))
    with RunningServer(tokenizer, GenerationDefaults(ends), folder=folder) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    while not server.node.heard.empty():  # what earlier tests have said
        server.node.heard.get()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def saying(tokenizer: Tokenizer, text: str) -> Script:
    """A script: this text, token by token, of which the last is an end token."""

    async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
        *ids, end = tokenizer.encode(text)
        for token in ids:
            yield TokenEvent(submit.request_id, [token])
        yield TokenEvent(submit.request_id, [end], FinishReason.STOP)

    return script


def chat(client: openai.OpenAI, **options: Any) -> Any:
    messages = [{"role": "user", "content": "1 + x?"}]
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def test_thought_and_answer(server, client, tokenizer):
    server.node.script = saying(tokenizer, f"{THOUGHT}{FINAL}Two<|return|>")
    answer = chat(client)
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.reasoning) == ("Two", "1 and 1")
    assert choice.finish_reason == "stop"
    thought = "<|channel|>analysis<|message|>1 and 1"
    counted = answer.usage.completion_tokens_details.reasoning_tokens
    assert counted == len(tokenizer.encode(thought))


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_behind_a_thought(server, client, tokenizer, stream):
    server.node.script = saying(tokenizer, f"{THOUGHT}{CALL}")
    if stream:
        chunks = [chunk.choices[0] for chunk in chat(client, tools=[TOOL], stream=True)]
        calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        name = "".join(call.function.name or "" for call in calls)
        arguments = "".join(call.function.arguments for call in calls)
        finish = chunks[-1].finish_reason
    else:
        (choice,) = chat(client, tools=[TOOL]).choices
        (call,) = choice.message.tool_calls
        name, arguments, finish = call.function.name, call.function.arguments, choice.finish_reason
        assert (choice.message.content, choice.message.reasoning) == (None, "1 and 1")
    assert (name, json.loads(arguments), finish) == ("add", {"x": 1}, "tool_calls")


def test_structured_output_opens_the_answer_itself(server, client, tokenizer):
    server.node.script = saying(tokenizer, '{"a": 1}<|return|>')
    answer = chat(client, response_format={"type": "json_object"})
    assert answer.choices[0].message.content == '{"a": 1}'
    submit = server.node.expect(Submit)
    assert tokenizer.decode(submit.prompt, False).endswith(f"<|start|>assistant{FINAL}")
    assert submit.grammar is not None


def test_a_call_that_must_be(server, client, tokenizer):
    server.node.script = saying(tokenizer, '[{"name": "add", "parameters": {"x": 1}}]<|return|>')
    (choice,) = chat(client, tools=[TOOL], tool_choice="required").choices
    assert choice.message.tool_calls[0].function.name == "add"


def test_the_thought_before_a_call_goes_back_into_the_template(server, client, tokenizer):
    server.node.script = saying(tokenizer, f"{FINAL}Two<|return|>")
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "reasoning": "A thought.", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
    ]
    client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL])
    prompt = tokenizer.decode(server.node.expect(Submit).prompt, False)
    assert "<|start|>assistant<|message|>A thought.<|end|>" in prompt
