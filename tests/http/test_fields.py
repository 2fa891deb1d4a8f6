"""Every documented field, with a value that matters: it is obeyed, or refused by its name.

What is documented are the clients' own types; the values stand in `tests.support.api_fields`.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic.types.beta.message_create_params
import anthropic.types.message_create_params
import httpx
import msgspec
import openai.types.chat.completion_create_params
import openai.types.completion_create_params
import openai.types.responses.response_create_params
import pytest

from megainfer import __version__
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.messages.requests import FinishReason, Submit, TokenEvent, TokenLogprobs
from megainfer.text.tokenizer import Tokenizer
from server.openai.wishes.not_offered import CHAT, COMPLETION
from tests.support.api_fields import APIS, SCHEMA, TOOL, Verdict
from tests.support.scripted_server import RunningServer, byte_level_backend, write_tokenizer

Json = dict[str, Any]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ tools }}{{ documents }}{{ reasoning_effort }}{{ enable_thinking }}{{ greeting }}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# <tool_call> #}"
)
TEXT = "one. two. three."
SPECIAL, END = 1, 2


DOCUMENTED: dict[str, list[Any]] = {
    "/v1/completions": [openai.types.completion_create_params.CompletionCreateParamsBase],
    "/v1/chat/completions": [openai.types.chat.completion_create_params.CompletionCreateParamsBase],
    "/v1/responses": [openai.types.responses.response_create_params.ResponseCreateParamsBase],
    "/v1/messages": [
        anthropic.types.message_create_params.MessageCreateParamsBase,
        anthropic.types.beta.message_create_params.MessageCreateParamsBase,
    ],
}
CASES = [
    (path, name, value, verdict)
    for path, (_, fields) in APIS.items()
    for name, (value, verdict) in fields.items()
]


@pytest.fixture(scope="module")
def served(running: RunningServer) -> Iterator["Served"]:
    with httpx.Client(base_url=running.url, timeout=20, trust_env=False) as client:
        yield Served(running, client)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("fields")
    tokenizer = Tokenizer.load(
        write_tokenizer(folder, byte_level_backend(), chat_template=TEMPLATE)
    )

    async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
        spoken = [*tokenizer.encode(TEXT, False), SPECIAL][: submit.max_tokens]
        for position, token in enumerate(spoken):
            scores = [TokenLogprobs({token: -0.5, 9: -1.5, 11: -2.5}, 1)]
            before = [scores[0]] * (len(submit.prompt) - 1) if position == 0 else None
            yield TokenEvent(
                submit.request_id,
                [token],
                FinishReason.LENGTH if position + 1 == submit.max_tokens else None,
                logprobs=None if submit.logprobs is None else scores,
                prompt_logprobs=None if submit.prompt_logprobs is None else before,
            )
        if len(spoken) < submit.max_tokens:
            ending = [TokenLogprobs({END: -0.5}, 1)]
            yield TokenEvent(submit.request_id, [END], FinishReason.STOP, logprobs=ending)

    with RunningServer(tokenizer, GenerationDefaults((END,)), folder=folder) as server:
        server.node.script = script
        yield server


class Served:
    """The server and its node's side."""

    def __init__(self, server: RunningServer, client: httpx.Client) -> None:
        self.client = client
        self._heard = server.node.heard
        self._plain: dict[str, tuple[int, str, str]] = {}

    def plain(self, path: str) -> tuple[int, str, str]:
        """What comes of a request without further fields."""
        if path not in self._plain:
            self._plain[path] = self.ask(path, APIS[path][0])
        return self._plain[path]

    def ask(self, path: str, body: Json) -> tuple[int, str, str]:
        """The status, what the node was asked, and the answer without what is new each time."""
        self._asked()
        response = self.client.post(path, json=body)
        text = response.text
        if path == "/v1/responses" and response.status_code == 200 and not body.get("stream"):
            text = json.dumps(response.json()["output"])  # the rest repeats the request
        text = re.sub(r'"(id|created|created_at|item_id)": ?("[^"]*"|\d+)', "", text)
        return response.status_code, repr(self._asked()), text

    def _asked(self) -> list[Submit]:
        asked = []
        while not self._heard.empty():
            if isinstance(message := self._heard.get(), Submit):
                asked.append(msgspec.structs.replace(message, request_id=""))
        return asked


def test_every_documented_field_is_decided_upon():
    for path, kinds in DOCUMENTED.items():
        names = {name for kind in kinds for name in kind.__annotations__}
        assert names - APIS[path][1].keys() == set(), path


@pytest.mark.parametrize(
    ("path", "name", "value", "verdict"),
    CASES,
    ids=[f"{path.removeprefix('/v1/')}-{name}" for path, name, _, _ in CASES],
)
def test_a_field_is_obeyed_or_refused_by_name(
    served: Served, path: str, name: str, value: Any, verdict: Verdict
) -> None:
    body, plain = APIS[path][0], served.plain(path)
    assert plain[0] == 200
    status, asked, answer = served.ask(path, {**body, name: value})
    match verdict:
        case Verdict.REFUSED:
            assert status == 400
            error = json.loads(answer)["error"]
            assert name in error["message"]
            assert error.get("param", name).startswith(name)
        case Verdict.OBEYED:
            assert status == 200, answer
            assert (asked, answer) != plain[1:]
        case Verdict.NOTHING:
            assert (status, asked, answer) == plain


@pytest.mark.parametrize("path", APIS)
def test_null_is_as_if_left_out(served: Served, path: str) -> None:
    body, fields = APIS[path]
    nulls = {name: None for name in fields if name not in body}
    assert served.ask(path, {**body, **nulls}) == served.plain(path)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_values_that_ask_for_nothing_are_accepted(served: Served, path: str) -> None:
    body, plain = APIS[path][0], served.plain(path)
    table = COMPLETION if path == "/v1/completions" else CHAT
    for at in range(2):
        neutral = {n: v[min(at, len(v) - 1)] for n, v in table.items() if v and n not in body}
        assert served.ask(path, {**body, **neutral}) == plain
    for name in table.keys() - body.keys():
        status, _, answer = served.ask(path, {**body, name: {"asks": "for something"}})
        assert status == 400, name
        assert name in json.loads(answer)["error"]["message"]


FORMATS: list[tuple[Json, str, str]] = [  # response_format, the grammar's kind, what it holds
    ({"type": "json_object"}, "json_schema", '{"type": "object"}'),
    ({"type": "json_object", "schema": SCHEMA}, "json_schema", json.dumps(SCHEMA)),
    ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "json_schema", json.dumps(SCHEMA)),
    ({"type": "json_schema", "schema": SCHEMA}, "json_schema", json.dumps(SCHEMA)),
    ({"type": "regex", "pattern": "a+"}, "regex", "a+"),
    ({"type": "grammar", "grammar": 'root ::= "a"'}, "lark", 'root ::= "a"'),
]


@pytest.mark.parametrize(("wanted", "kind", "text"), FORMATS, ids=[str(f[0])[:60] for f in FORMATS])
def test_a_response_format_is_obeyed(served: Served, wanted: Json, kind: str, text: str) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        _, asked, _ = served.ask(path, {**APIS[path][0], "response_format": wanted})
        assert f"kind=<GrammarKind.{kind.upper()}: {kind!r}>, text={text!r}" in asked


def test_shapes_by_other_names_are_the_same(served: Served) -> None:
    path = "/v1/chat/completions"
    body = APIS[path][0]
    by_name = {"json": {"guided_json": SCHEMA}, "grammar": {"guided_grammar": 'root ::= "a"'}}
    for kind, fields in (
        ("json", {"json_schema": SCHEMA}),
        ("json", {"json_schema": json.dumps(SCHEMA)}),
        ("json", {"format": SCHEMA}),
        ("grammar", {"grammar": 'root ::= "a"'}),
        ("grammar", {"ebnf": 'root ::= "a"'}),
    ):
        expected = served.ask(path, {**body, **by_name[kind]})
        assert served.ask(path, {**body, **fields}) == expected


WRONG: list[tuple[str, Json, str]] = [
    ("/v1/chat/completions", {"grammar": "root ::= ("}, "grammar: the lark can't be"),
    ("/v1/chat/completions", {"json_schema": {"type": "objekt"}}, "json_schema: the json_schema"),
    ("/v1/chat/completions", {"format": "yaml"}, 'format must be "json" or a JSON schema'),
    ("/v1/chat/completions", {"grammar": 'root ::= "a"', "regex": "a"}, "exclude each other"),
    (
        "/v1/chat/completions",
        {"response_format": {"type": "json_object", "schema": {"const": 2**53 + 1}}},
        "response_format.schema: const 9007199254740993 can't be kept exactly",
    ),
    (
        "/v1/chat/completions",
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        "structured_outputs.disable_any_whitespace isn't offered",
    ),
    ("/v1/chat/completions", {"reasoning": {"max_tokens": 5}}, "reasoning.max_tokens isn't"),
    ("/v1/chat/completions", {"reasoning": {"exclude": True}}, "reasoning.exclude isn't"),
    ("/v1/chat/completions", {"reasoning": {"effort": "max"}}, "reasoning.effort must be one of"),
    ("/v1/chat/completions", {"thinking": {"type": "hard"}}, "thinking.type must be one of"),
    (
        "/v1/chat/completions",
        {"thinking": {"type": "enabled", "budget_tokens": 5}},
        "thinking.budget_tokens isn't",
    ),
    (
        "/v1/chat/completions",
        {"thinking": {"type": "enabled"}, "enable_thinking": False},
        "must be true or false, and agree",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x", "prefix": True}]},
        "messages[0]: prefix or partial is for the assistant's message at the end only",
    ),
    ("/v1/responses", {"include": ["a.b"]}, "include: 'a.b' isn't offered"),
    (
        "/v1/responses",
        {"input": [{"type": {"a": 1}}]},
        "input[0].type must be a string, not {'a': 1}",
    ),
    (
        "/v1/responses",
        {"tools": [{"type": "namespace", "name": "n", "tools": ["f"]}]},
        "tools must be a list of objects, not ['f']",
    ),
    (
        "/v1/responses",
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": 7}},
        "tool_choice.tools must be a list of objects, not 7",
    ),
    (
        "/v1/responses",
        {"input": [{"type": "function_call_output", "call_id": [], "output": ""}]},
        "input[0].call_id must be a string, not []",
    ),
    ("/v1/messages", {"context_management": {"edits": 7}}, "edits must be a list, not 7"),
    ("/v1/messages", {"thinking": {"type": []}}, "thinking.type must be one of"),
    ("/v1/chat/completions", {"thinking": {"type": []}}, "thinking.type must be one of"),
    ("/v1/chat/completions", {"reasoning": {"enabled": []}}, "must be true or false, and agree"),
    ("/v1/chat/completions", {"response_format": {"type": []}}, "response_format.type must be"),
    ("/v1/chat/completions", {"grammar": 'other ::= "a"'}, "No 'root' rule found"),
    ("/v1/responses", {"text": {"verbosity": "low"}}, "text.verbosity: isn't offered"),
    ("/v1/responses", {"reasoning": {"mode": "pro"}}, "reasoning.mode: isn't offered"),
    ("/v1/responses", {"truncation": "some"}, "truncation must be auto or disabled"),
    ("/v1/messages", {"output_config": {"effort": "max"}}, "output_config.effort must be one of"),
    ("/v1/messages", {"output_config": {"task": 1}}, "output_config.task isn't offered"),
    ("/v1/messages", {"output_config": {"format": {"type": "x"}}}, "output_config.format must be"),
    (
        "/v1/messages",
        {"thinking": {"type": "enabled", "display": "omitted"}},
        "thinking.display isn't offered",
    ),
    ("/v1/messages", {"n": 2}, "n: isn't offered"),
]


@pytest.mark.parametrize(
    ("path", "fields", "words"), WRONG, ids=[str(fields)[:70] for _, fields, _ in WRONG]
)
def test_what_is_wrong_inside_a_field_is_told(
    served: Served, path: str, fields: Json, words: str
) -> None:
    status, _, answer = served.ask(path, {**APIS[path][0], **fields})
    assert status == 400, answer
    assert words in json.loads(answer)["error"]["message"]


ACCEPTED: list[tuple[str, Json]] = [
    ("/v1/responses", {"include": ["reasoning.encrypted_content"]}),
    ("/v1/responses", {"text": {"verbosity": "medium"}}),
    ("/v1/responses", {"reasoning": {"summary": "auto"}}),
    ("/v1/responses", {"store": False, "background": False}),
    ("/v1/messages", {"output_config": {"effort": "high"}}),
    ("/v1/messages", {"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}),
    ("/v1/messages", {"thinking": None, "container": None}),
]


@pytest.mark.parametrize(("path", "fields"), ACCEPTED, ids=[str(f)[:70] for _, f in ACCEPTED])
def test_what_is_as_it_is_anyway_is_accepted(served: Served, path: str, fields: Json) -> None:
    body = APIS[path][0]
    assert served.ask(path, {**body, **fields}) == served.ask(path, body)


def test_the_last_message_is_continued_by_other_names(served: Served) -> None:
    path, asked = "/v1/chat/completions", {"role": "user", "content": "some words"}
    begun = {"role": "assistant", "content": "so"}
    expected = served.ask(path, {"messages": [asked, begun], "continue_final_message": True,
                                   "seed": 1})  # fmt: skip
    for name in ("prefix", "partial"):
        messages = [asked, {**begun, name: True}]
        assert served.ask(path, {"messages": messages, "seed": 1}) == expected


def test_truncation_of_a_response_keeps_what_the_context_leaves(served: Served) -> None:
    body = {"input": "word " * 300, "max_output_tokens": 56}
    assert served.ask("/v1/responses", body)[0] == 400
    status, asked, _ = served.ask("/v1/responses", {**body, "truncation": "auto"})
    assert status == 200
    (prompt,) = re.findall(r"prompt=\[([^]]*)\]", asked)
    assert len(prompt.split(",")) == 256 - 56


def test_answers_name_the_program_and_the_model(served: Served) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        body = APIS[path][0]
        whole = served.client.post(path, json=body).json()
        events = served.client.post(path, json={**body, "stream": True}).text
        assert whole["system_fingerprint"] == f"megainfer-{__version__}-tiny"
        chunks = [json.loads(e[6:]) for e in events.split("\n\n") if e.startswith("data: {")]
        assert {c["system_fingerprint"] for c in chunks} == {whole["system_fingerprint"]}


def test_a_response_has_the_log_probabilities_of_its_text(served: Served) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    body = {**APIS["/v1/responses"][0], **fields}
    whole = served.client.post("/v1/responses", json=body).json()
    (message,) = whole["output"]
    (part,) = message["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"] == TEXT
    assert {entry["logprob"] for entry in part["logprobs"]} == {-0.5}
    assert all(
        [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -1.5]
        for entry in part["logprobs"]
    )
    text = served.client.post("/v1/responses", json={**body, "stream": True}).text
    events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    for delta in deltas:
        assert "".join(entry["token"] for entry in delta["logprobs"]) == delta["delta"]
    (done,) = [e for e in events if e["type"] == "response.output_text.done"]
    assert done["logprobs"] == [entry for delta in deltas for entry in delta["logprobs"]]
    assert done["logprobs"] == part["logprobs"]
