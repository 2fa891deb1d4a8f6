"""/v1/responses and /v1/messages with their own clients; tokenize and detokenize."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from megainfer.frontend.serving_options import ServingOptions
from megainfer.messages.requests import RequestFailed, TokenEvent
from megainfer.text.tokenizer import Tokenizer
from tests.support.scripted_server import RunningServer, byte_level_backend, write_tokenizer
from tests.support.tools import CALL, TEMPLATE, prompt_of, saying

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOL = {"type": "function", "name": "add", "parameters": SCHEMA}
CLAUDES_TOOL = {"name": "add", "input_schema": SCHEMA}
SPOKEN = f"1 + 1</think>Let me see.{CALL}"
JSON = {"Content-Type": "application/json"}
THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("other_apis")
    return Tokenizer.load(write_tokenizer(folder, byte_level_backend(), chat_template=TEMPLATE))


@pytest.fixture(scope="module")
def running(tokenizer) -> Iterator[RunningServer]:
    with RunningServer(tokenizer) as server:
        yield server


@pytest.fixture
def server(running) -> RunningServer:
    while not running.node.heard.empty():  # what earlier tests have said
        running.node.heard.get()
    return running


@pytest.fixture
def responses(server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client.responses


@pytest.fixture
def messages(server) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client.messages


def test_a_response_has_items(server, responses, tokenizer):
    server.node.script = saying(tokenizer, SPOKEN)
    made = responses.create(model="tiny", input="1 + x?", tools=[TOOL], extra_body=THINKING)
    thought, said, call = made.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "1 + 1")
    assert (said.type, made.output_text) == ("message", "Let me see.")
    assert (call.type, call.name, call.arguments) == ("function_call", "add", '{"x": 1}')
    assert (made.status, made.usage.output_tokens) == (
        "completed",
        len(tokenizer.encode(SPOKEN)) + 1,
    )
    assert made.usage.output_tokens_details.reasoning_tokens == len(tokenizer.encode("1 + 1"))


def test_a_response_streams_by_events(server, responses, tokenizer):
    server.node.script = saying(tokenizer, SPOKEN)
    with responses.stream(
        model="tiny", input="1 + x?", tools=[TOOL], extra_body=THINKING
    ) as stream:
        events = list(stream)
        whole = stream.get_final_response()
    thoughts = whole.usage.output_tokens_details.reasoning_tokens
    assert thoughts == len(tokenizer.encode("1 + 1"))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    texts = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(texts) == "Let me see." == whole.output_text
    arguments = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(arguments) == '{"x": 1}'
    assert len(texts) > 2


def test_items_of_a_conversation_reach_the_template(server, responses, tokenizer):
    server.node.script = saying(tokenizer, "2")
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "1 + x?"}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
    ]
    responses.create(model="tiny", instructions="Add.", input=items)
    expected = "system: Add.user: 1 + x?assistant: [add(1)]tool: 2assistant: "
    assert prompt_of(server, tokenizer) == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"store": True}, "store: this server keeps nothing"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "only functions"),
        ({"input": [{"type": "input_image"}]}, "aren't offered"),
        ({"temperature": 9.0}, "temperature must be between"),
    ],
)
def test_what_responses_do_not_offer_is_refused(responses, fields, words):
    with pytest.raises(openai.BadRequestError, match=words):
        responses.create(**{"model": "tiny", "input": "Hi", **fields})


def ask(**options: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": "1 + x?"}]
    return {"model": "tiny", "max_tokens": 60, "messages": asked, **options}


def test_a_message_has_blocks(server, messages, tokenizer):
    server.node.script = saying(tokenizer, SPOKEN)
    thinking = {"type": "enabled", "budget_tokens": 1024}
    made = messages.create(**ask(tools=[CLAUDES_TOOL], thinking=thinking))
    thought, said, call = made.content
    assert (thought.thinking, said.text) == ("1 + 1", "Let me see.")
    assert (call.name, call.input, made.stop_reason) == ("add", {"x": 1}, "tool_use")


def test_a_message_streams(server, messages, tokenizer):
    server.node.script = saying(tokenizer, SPOKEN)
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with messages.stream(**ask(tools=[CLAUDES_TOOL], thinking=thinking)) as stream:
        assert "".join(stream.text_stream) == "Let me see."
        whole = stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
    assert whole.content[2].input == {"x": 1}
    assert (whole.stop_reason, whole.usage.output_tokens > 5) == ("tool_use", True)


@pytest.mark.parametrize(
    ("value", "read"), [("NaN", None), ('"\\ud83d"', "\ufffd"), ("1e999", None), ("", None)]
)
def test_values_that_no_json_has_become_some(server, messages, tokenizer, value, read):
    spoken = f'<tool_call>{{"name": "add", "arguments": {{"x": {value}}}}}</tool_call>'
    server.node.script = saying(tokenizer, spoken)
    (call,) = messages.create(**ask(tools=[CLAUDES_TOOL])).content
    assert (call.name, call.input) == ("add", {"x": read})


def test_a_stop_sequence_and_a_limit_are_told_apart(server, messages, tokenizer):
    server.node.script = saying(tokenizer, "one two three")
    made = messages.create(**ask(stop_sequences=["two"]))
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", "two")
    assert made.content[0].text == "one "


def test_results_of_tools_reach_the_template(server, messages, tokenizer):
    server.node.script = saying(tokenizer, "2")
    use = {"type": "tool_use", "id": "t", "name": "add", "input": {"x": 1}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "2"}
    spoken = [
        {"role": "user", "content": "1 + x?"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    messages.create(**ask(system="Add.", messages=spoken))
    expected = "system: Add.user: 1 + x?assistant: [add(1)]tool: 2user: So?assistant: "
    assert prompt_of(server, tokenizer) == expected
    counted = messages.count_tokens(model="tiny", system="Add.", messages=spoken)
    assert counted.input_tokens == len(tokenizer.encode(expected))


def test_errors_are_in_the_shape_of_the_api(server, messages, tokenizer):
    with pytest.raises(anthropic.BadRequestError, match=r"tool_choice\.type") as refused:
        messages.create(**ask(tools=[CLAUDES_TOOL], tool_choice={"type": "many"}))
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["messages", "messages/count_tokens"])
@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        (ask(messages="Hi"), 400, "invalid_request_error", "messages"),
        ({"model": "tiny"}, 400, "invalid_request_error", "messages"),
        (ask(model="other"), 404, "not_found_error", "isn't served here"),
        (b"{", 400, "invalid_request_error", "isn't valid JSON"),
        (b"", 400, "invalid_request_error", "empty"),
    ],
)
def test_wrong_bodies_are_refused_in_that_shape(server, path, body, status, kind, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{server.url}/v1/{path}", content=content, headers=JSON)
    refused_with(answer, status, kind, words)


def test_so_are_other_methods_keys_and_a_server_that_drains(server, tokenizer):
    answer = httpx.get(f"{server.url}/v1/messages")
    refused_with(answer, 405, "invalid_request_error", "method")
    with RunningServer(tokenizer, options=ServingOptions(api_keys=("k",))) as keyed:
        url = f"{keyed.url}/v1/messages"
        refused_with(httpx.post(url, json=ask()), 401, "authentication_error", "key")
        keyed.instance.occupancy.draining = True
        answer = httpx.post(url, json=ask(), headers={"x-api-key": "k"})
        refused_with(answer, 503, "overloaded_error", "no new requests")
        assert answer.headers["Retry-After"] == "1"
        elsewhere = httpx.post(f"{keyed.url}/v1/responses", json={"input": "Hi"})
        assert elsewhere.json()["error"]["code"] == "invalid_api_key"


def refused_with(answer: httpx.Response, status: int, kind: str, words: str) -> None:
    body = answer.json()
    assert (answer.status_code, set(body), body["type"]) == (status, {"type", "error"}, "error")
    assert set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == kind
    assert words in body["error"]["message"]


def test_an_error_in_mid_stream_is_an_event(server, tokenizer):
    async def breaking(submit):
        yield TokenEvent(submit.request_id, tokenizer.encode("a"))
        yield RequestFailed(0, submit.request_id, "it broke")

    server.node.script = breaking
    bodies = {
        "messages": ask(stream=True),
        "responses": {"input": "Hi", "stream": True},
    }
    for path, body in bodies.items():
        text = httpx.post(f"{server.url}/v1/{path}", json=body).text
        assert "it broke" in text.rstrip().rpartition("event: error")[2]


def test_tokenize_and_back(server, tokenizer):
    def post(path: str, **body: Any) -> dict[str, Any]:
        response = httpx.post(f"{server.url}/{path}", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    text = "The quick brown fox 😀"
    made = post("tokenize", prompt=text, return_token_strs=True)
    assert made["tokens"] == tokenizer.encode(text)
    assert (made["count"], len(made["token_strs"])) == (len(made["tokens"]),) * 2
    assert post("detokenize", tokens=made["tokens"]) == {"prompt": text}
    chat = post("tokenize", messages=[{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(chat["tokens"]) == "user: Hiassistant: "
    assert httpx.get(f"{server.url}/tokenizer_info").status_code == 404
    wrong = httpx.post(f"{server.url}/detokenize", json={"tokens": [10**9]})
    assert wrong.status_code == 400


def test_the_tokenizer_tells_its_configuration(tmp_path):
    bos = {"content": "<s>", "lstrip": False, "__type": "AddedToken"}
    said = {"bos_token": bos, "add_bos_token": True, "chat_template": TEMPLATE}
    folder = write_tokenizer(tmp_path, byte_level_backend(), **said)
    with RunningServer(Tokenizer.load(folder), shows_tokenizer=True) as server:
        info = httpx.get(f"{server.url}/tokenizer_info").json()
        length = httpx.get(f"{server.url}/v1/models").json()["data"][0]["max_model_len"]
    assert info == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "add_bos_token": True,
        "chat_template": TEMPLATE,
    }
    write_tokenizer(tmp_path, tokenizer_class="Qwen2Tokenizer", model_max_length=131072)
    with RunningServer(Tokenizer.load(folder), shows_tokenizer=True) as server:
        info = httpx.get(f"{server.url}/tokenizer_info").json()
    assert (info["tokenizer_class"], info["model_max_length"]) == ("Qwen2Tokenizer", 131072)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/responses", {"input": [{}] * 8193}, "input may hold at most 8192 items, but holds"),
        ("/v1/messages", {"messages": [{}] * 4097}, "messages may hold at most 4096 items, but"),
    ],
)
def test_of_a_history_that_is_too_long_no_item_is_looked_at(server, path, body, message):
    answer = httpx.post(f"{server.url}{path}", json=body, trust_env=False)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
