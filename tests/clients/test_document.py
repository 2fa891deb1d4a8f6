"""The OpenAPI document tells of every address, and real answers are as it says."""

from typing import Any

import httpx
import jsonschema
import pytest

from server.document.answers import ANSWERS
from tests.clients.documented import NAME
from tests.clients.events import events

Json = dict[str, Any]
PARAMETERS = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
FUNCTION = {"name": "add", "parameters": {**PARAMETERS, "additionalProperties": False}}
CHAT: Json = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
EVERYTHING: Json = {"n": 2, "return_token_ids": True, "stop_token_ids": [7]}
TELLING = {**EVERYTHING, "prompt_logprobs": 2}
CALLS: Json = {
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
    "max_tokens": 80,
}
MESSAGES = {"messages": CHAT["messages"], "max_tokens": 8}
RESPONSE = {"input": "Hi", "max_output_tokens": 8}
GOOD: list[tuple[str, Json]] = [
    ("/v1/completions", {"prompt": "Hi", **TELLING, "logprobs": 3, "echo": True}),
    ("/v1/completions", {"prompt": ["Hi", "Ho"], "max_tokens": 2}),
    ("/v1/completions", {"prompt": [1, 2], "stream": True, **EVERYTHING, "logprobs": 1}),
    ("/v1/completions", {"prompt": [1, 2], "stream": True, "stream_options": USAGE}),
    ("/v1/chat/completions", {**CHAT, **TELLING, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {**CHAT, **CALLS}),
    ("/v1/chat/completions", {**CHAT, **EVERYTHING, "stream": True, "logprobs": True}),
    ("/v1/chat/completions", {**CHAT, **CALLS, "stream": True, "stream_options": USAGE}),
    ("/v1/responses", RESPONSE),
    ("/v1/responses", {**RESPONSE, "stream": True, "metadata": {"a": "b"}}),
    ("/v1/messages", MESSAGES),
    ("/v1/messages", {**MESSAGES, "stream": True}),
    ("/v1/messages/count_tokens", {"messages": CHAT["messages"]}),
    ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    ("/tokenize", {"messages": CHAT["messages"]}),
    ("/detokenize", {"tokens": [1, 2]}),
]


@pytest.fixture(scope="module")
def document(served) -> Json:
    found: Json = httpx.get(f"{served.url}/openapi.json").json()
    return found


def closed(schema: Any) -> Any:
    """The same schema, where an object holds nothing that isn't described."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(part) for name, part in schema.items()}
    open_ended = "properties" not in schema or schema.get("title") in OPEN_ENDED
    return inner if open_ended else {**inner, "additionalProperties": False}


OPEN_ENDED = ("ServerInfo", "Trace", "ResponseEvent", "MessageEvent", "TokenizerInfo")


def check(document: Json, path: str, method: str, response: httpx.Response) -> None:
    """Raises ValidationError or KeyError where the document doesn't describe the answer."""
    answer = document["paths"][path][method]["responses"][str(response.status_code)]
    kind = response.headers["content-type"].partition(";")[0]
    schema = answer["content"][kind]["schema"]
    values = [response.json()] if kind == "application/json" else []
    if kind == "text/event-stream":
        schema, values = (
            schema["properties"]["data"]["anyOf"][1]["contentSchema"],
            events(response.text),
        )
        assert values
    for value in values:
        whole = {**closed(schema), "components": closed(document["components"])}
        jsonschema.Draft202012Validator(whole).validate(value)


def test_it_describes_every_address(document) -> None:
    assert document["paths"].keys() == ANSWERS.keys()


@pytest.mark.parametrize("at", range(len(GOOD)))
def test_good_answers_are_as_described(served, document, at) -> None:
    path, body = GOOD[at]
    response = httpx.post(served.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    check(document, path, "post", response)


@pytest.mark.parametrize("path", sorted({path for path, _ in GOOD}))
def test_errors_are_as_described(served, document, path) -> None:
    url = served.url + path
    field = "input" if path == "/v1/responses" else "model"
    good = next(body for known, body in GOOD if known == path)
    for response in (
        httpx.post(url, json={field: 5}),
        httpx.post(url, json={**good, "model": "gpt-4o"}),
        httpx.post(url, content=b"{}", headers={"Content-Type": "text/plain"}),
        httpx.post(url, content=b"{", headers={"Content-Type": "application/json"}),
    ):
        assert response.status_code in (400, 404, 415)
        check(document, path, "post", response)


@pytest.mark.parametrize(
    "path", sorted(path for path in ANSWERS if "{" not in path and path != "/debug/trace")
)
def test_what_is_only_read_is_as_described(served, document, path) -> None:
    if "get" in document["paths"].get(path, {}):
        response = httpx.get(served.url + path, timeout=60)
        assert response.status_code == 200, response.text
        check(document, path, "get", response)


def test_models_and_traces_are_as_described(served, document) -> None:
    for address in (f"/v1/models/{NAME}", "/v1/models/gpt-4o"):
        check(document, "/v1/models/{model_id}", "get", httpx.get(served.url + address))
    for seconds in (0.05, -1, "x"):
        response = httpx.get(f"{served.url}/debug/trace?seconds={seconds}")
        check(document, "/debug/trace", "get", response)
