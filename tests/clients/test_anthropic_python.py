"""Anthropic's own library for Python."""

from typing import Any

import anthropic
import pytest

from tests.clients.documented import NAME, run_documented

TOOL: Any = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"warm": {"type": "boolean"}},
        "required": ["warm"],
        "additionalProperties": False,
    },
}
QUESTION: list[Any] = [{"role": "user", "content": "Hello world"}]


def test_as_documented_streamed_and_with_a_tool(served) -> None:
    left: Any = run_documented("Anthropic for Python", served.url)
    assert left["answer"].role == "assistant"
    client: anthropic.Anthropic = left["client"]
    asked: Any = {"model": NAME, "messages": QUESTION, "max_tokens": 12}
    asked["extra_body"] = {"temperature": 0}
    with client.messages.stream(**asked) as stream:
        streamed = "".join(stream.text_stream)
    assert streamed == client.messages.create(**asked).content[0].text  # type: ignore[union-attr]
    choice = {"type": "tool", "name": "weather"}
    called = client.messages.create(**{**asked, "max_tokens": 80}, tools=[TOOL], tool_choice=choice)
    (call,) = called.content
    assert call.type == "tool_use"
    assert isinstance(call.input["warm"], bool)
    assert client.messages.count_tokens(model=NAME, messages=QUESTION).input_tokens > 0


def test_errors_have_the_librarys_types(served) -> None:
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="gpt-4o", messages=QUESTION, max_tokens=5)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    wrong: Any = {"temperature": "warm"}
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(model=NAME, messages=QUESTION, max_tokens=5, extra_body=wrong)
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
