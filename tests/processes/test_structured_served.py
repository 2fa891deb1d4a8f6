"""Structured output from a running server: both roles, a random model, the official client."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import write_tokenizer
from tests.support.served import Served, serving
from tests.support.tools import TEMPLATE

QUESTION = [{"role": "user", "content": "Hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}, "ok": {"enum": [1, "x"]}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
BOMB = {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(1, 200)]}
"""The intersection of 200 expressions, each of exponential size as an automaton."""


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("structured_served")
    write_checkpoint("qwen3_moe", "gqa", folder, vocab_size=400, max_position_embeddings=1024)
    write_tokenizer(folder, chat_template=TEMPLATE)
    with serving(str(folder), "--attn-gpus", "1", "--ffn-gpus", "1") as served:
        yield served


@pytest.fixture(scope="module")
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **options: Any) -> Any:
    model = client.models.list().data[0].id
    return client.chat.completions.create(
        model=model, **{"messages": QUESTION, "max_tokens": 150, **options}
    )


def test_json_schema_and_several_answers(client):
    described = {"name": "it", "schema": SCHEMA, "strict": True}
    wanted = {"type": "json_schema", "json_schema": described}
    answer = chat(client, n=4, temperature=1.0, seed=3, response_format=wanted)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_regex_and_choice_of_a_completion(client):
    model = client.models.list().data[0].id
    outputs: dict[str, Any] = {"regex": r"[a-c]{3}[0-9]"}
    text = client.completions.create(
        model=model, prompt="x", max_tokens=20, extra_body={"structured_outputs": outputs}
    )
    assert re.fullmatch(outputs["regex"], text.choices[0].text)
    text = client.completions.create(
        model=model, prompt="x", max_tokens=20, extra_body={"guided_choice": ["yes", "no"]}
    )
    assert text.choices[0].text in ("yes", "no")


def test_required_and_named_calls(client):
    required = chat(client, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    (choice,) = required.choices
    (call,) = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason) == ("add", "tool_calls")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    named = {"type": "function", "function": {"name": "add"}}
    arguments = ""
    for chunk in chat(client, tools=[TOOL], tool_choice=named, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            arguments += piece.function.arguments
    jsonschema.validate(json.loads(arguments), SCHEMA)


def test_what_costs_too_much_is_refused_while_others_go_on(client):
    def refused() -> str:
        wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": BOMB}}
        with pytest.raises(openai.BadRequestError) as error:
            chat(client, response_format=wanted)
        return str(error.value)

    with ThreadPoolExecutor(1) as pool:
        bomb = pool.submit(refused)
        while not bomb.done():
            assert chat(client, max_tokens=5).choices[0].finish_reason
        assert "too much time or memory" in bomb.result()
    text = chat(client, extra_body={"guided_regex": "[ab]{3}"}).choices[0].message.content
    assert re.fullmatch("[ab]{3}", text), "grammars are compiled again afterwards"


def test_a_wrong_schema_says_what_is_wrong(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "strin"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: strin"):
        chat(client, response_format=wanted)
    deep: Any = {"type": "string"}
    for _ in range(70):
        deep = {"type": "array", "items": deep}
    with pytest.raises(openai.BadRequestError, match="nested deeper than 64"):
        chat(client, extra_body={"structured_outputs": {"json": deep}})
