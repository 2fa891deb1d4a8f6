"""A conversation always goes on: whatever the server has sent, and whatever the APIs let clients
say of what was before, is taken in the next turn, and is in the prompt as the template wants it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.messages.requests import Submit
from megainfer.text.tokenizer import Tokenizer
from tests.support.scripted_server import RunningServer, byte_level_backend, write_tokenizer
from tests.support.tools import prompt_of, saying

Json = dict[str, Any]
CALLED = '<tool_call>{"name": "get", "arguments": {"p": "é"}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"p": {"type": "string"}}}
HEAD = "{% for m in messages %}[{{ m.role }}|{{ m.content }}"
EACH = "{% for c in m.tool_calls or [] %}"
TAIL = "{% endfor %}]{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
TEMPLATES = {
    "joins text": HEAD + EACH + "{{ '<' + c.function.name + c.function.arguments + '>' }}" + TAIL,
    "prints JSON": HEAD
    + EACH
    + "<{{ c.function.name }}{{ c.function.arguments | tojson }}>"
    + TAIL,
    "nine letters": HEAD
    + EACH
    + "{% if c.id | length != 9 %}{{ raise_exception('9') }}{% endif %}"
    + "<{{ c.function.name }}{{ c.function.arguments | tojson }}>"
    + TAIL,
    "asks for none": "{% for m in messages %}[{{ m.role }}|"
    "{% if m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}"
    "<{{ c.function.name }}{{ c.function.arguments | tojson }}>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}]{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}",
    "one system": "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('first') }}{% endif %}{% endfor %}"
    + HEAD
    + EACH
    + "<{{ c.function.name }}{{ c.function.arguments | tojson }}>"
    + TAIL,
}


class Asked:
    """A server whose model says what it is told to."""

    def __init__(self, server: RunningServer, tokenizer: Tokenizer) -> None:
        self.server, self.tokenizer = server, tokenizer

    def __call__(self, path: str, spoken: str = "So.", **body: Any) -> httpx.Response:
        while not self.server.node.heard.empty():
            self.server.node.heard.get()
        self.server.node.script = saying(self.tokenizer, spoken)
        return httpx.post(f"{self.server.url}/v1/{path}", json=body, timeout=20)

    def said(self, path: str, spoken: str = "So.", **body: Any) -> Json:
        answer = self(path, spoken, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def prompt(self) -> str:
        return prompt_of(self.server, self.tokenizer)


@contextmanager
def asked_with(folder: Path, template: str) -> Iterator[Asked]:
    files = write_tokenizer(folder, byte_level_backend(), chat_template=template)
    tokenizer = Tokenizer.load(files)
    syntax = SyntaxOptions(tool_call_parser="hermes")
    ends = GenerationDefaults((2,))
    with RunningServer(tokenizer, ends, folder=files, syntax=syntax, context=4096) as server:
        yield Asked(server, tokenizer)


@pytest.fixture(scope="module")
def ask(tmp_path_factory) -> Iterator[Asked]:
    with asked_with(tmp_path_factory.mktemp("one"), TEMPLATES["one system"]) as asked:
        yield asked


# --- what the server has sent ---------------------------------------------------------------------


def chat_turn(ask: Asked, **more: Any) -> None:
    function = {"name": "get", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    user = {"role": "user", "content": "Hi"}
    first = ask.said("chat/completions", CALLED, messages=[user], tools=tools, **more)
    said = first["choices"][0]["message"]
    assert said["content"] is None
    result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "r"}
    ask.said("chat/completions", messages=[user, said, result], tools=tools)


def messages_turn(ask: Asked, **more: Any) -> None:
    tools = [{"name": "get", "input_schema": SCHEMA}]
    user = {"role": "user", "content": "Hi"}
    first = ask.said("messages", CALLED, max_tokens=90, messages=[user], tools=tools, **more)
    result = {"type": "tool_result", "tool_use_id": first["content"][0]["id"], "content": "r"}
    said = {"role": "assistant", "content": first["content"]}
    messages = [user, said, {"role": "user", "content": [result]}]
    ask.said("messages", max_tokens=90, messages=messages, tools=tools)


def responses_turn(ask: Asked, **more: Any) -> None:
    tools = [{"type": "function", "name": "get", "parameters": SCHEMA}]
    user = {"role": "user", "content": "Hi"}
    first = ask.said("responses", CALLED, input=[user], tools=tools, **more)
    (call,) = first["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "r"}
    ask.said("responses", input=[user, call, result], tools=tools)


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_what_the_server_sent_comes_back(tmp_path: Path, template: str) -> None:
    turns: list[Callable[[Asked], None]] = [chat_turn, messages_turn, responses_turn]
    with asked_with(tmp_path, TEMPLATES[template]) as ask:
        for turn in turns:
            turn(ask)
            assert ask.prompt == '[user|Hi][assistant|<get{"p": "é"}>][tool|r]A:'


@pytest.mark.parametrize("arguments", ['{"p": "é"', "{'p': 'é'}", '{"p": "é",}', {"p": "é"}])
def test_what_a_model_wrote_badly_goes_back_to_it(ask: Asked, arguments: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get", "arguments": arguments}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    ask.said("chat/completions", messages=[{"role": "user", "content": "Hi"}, said])
    assert ask.prompt == '[user|Hi][assistant|<get{"p": "é"}>]A:'


@pytest.mark.parametrize("arguments", ["", "null", "[]", "nothing", None, 3])
def test_arguments_that_are_none_are_empty(ask: Asked, arguments: Any) -> None:
    item = {"type": "function_call", "call_id": "c", "name": "get", "arguments": arguments}
    ask.said("responses", input=[{"role": "user", "content": "Hi"}, item])
    assert ask.prompt == "[user|Hi][assistant|<get{}>]A:"


# --- chat completions -----------------------------------------------------------------------------

U = {"role": "user", "content": "u"}
OLDER = {"role": "assistant", "content": None, "function_call": {"name": "get", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([U, {"role": "assistant", "content": None}, U], "[user|u][assistant|][user|u]A:"),
        ([U, {"role": "assistant"}, U], "[user|u][assistant|][user|u]A:"),
        (
            [U, {"role": "assistant", "content": None, "tool_calls": []}, U],
            "[user|u][assistant|][user|u]A:",
        ),
        ([U, {"role": "assistant", "content": []}, U], "[user|u][assistant|][user|u]A:"),
        (
            [U, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, U],
            "[user|u][assistant|no][user|u]A:",
        ),
        (
            [U, {"role": "assistant", "content": None, "refusal": "no"}, U],
            "[user|u][assistant|no][user|u]A:",
        ),
        ([{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "[user|x]A:"),
        ([{"role": "user", "content": ["x", "y"]}], "[user|x\ny]A:"),
        (
            [U, OLDER, {"role": "function", "name": "get", "content": "1"}],
            "[user|u][assistant|<get{}>][tool|1]A:",
        ),
        (
            [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, U],
            "[system|a\n\nb][user|u]A:",
        ),
    ],
)
def test_what_a_chat_may_hold(ask: Asked, messages: list[Json], prompt: str) -> None:
    ask.said("chat/completions", messages=messages)
    assert ask.prompt == prompt


def test_thoughts_have_every_name(tmp_path: Path) -> None:
    names = "{{ m.thinking }}/{{ m.reasoning }}/{{ m.reasoning_content }}"
    with asked_with(tmp_path, "{% for m in messages %}[" + names + "]{% endfor %}") as ask:
        for name in ("thinking", "reasoning", "reasoning_content"):
            messages = [U, {"role": "assistant", "content": "x", name: "t"}, U]
            ask.said("chat/completions", messages=messages)
            assert ask.prompt == "[//][t/t/t][//]"


# --- /v1/messages ---------------------------------------------------------------------------------

USE = {"type": "tool_use", "id": "t1", "name": "get", "input": {"p": "é"}}
USED = {"role": "assistant", "content": [USE]}


def result(content: Any, **more: Any) -> Json:
    block = {"type": "tool_result", "tool_use_id": "t1", "content": content, **more}
    return {"role": "user", "content": [block]}


def text(words: str) -> Json:
    return {"type": "text", "text": words}


CALL_SHOWN = '[assistant|<get{"p": "é"}>]'


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"messages": [U, {"role": "system", "content": "s"}, U]}, "[user|u][user|s][user|u]A:"),
        (
            {"messages": [{"role": "system", "content": [text("s")]}, U], "system": "t"},
            "[system|t\n\ns][user|u]A:",
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "s"},
                    {"role": "system", "content": "t"},
                    U,
                ]
            },
            "[system|s\n\nt][user|u]A:",
        ),
        ({"messages": [U, USED, result(None)]}, f"[user|u]{CALL_SHOWN}[tool|]A:"),
        (
            {"messages": [U, USED, result([text("a"), text("b")], is_error=True)]},
            f"[user|u]{CALL_SHOWN}[tool|a\nb]A:",
        ),
        (
            {"messages": [U, USED, result([{"type": "tool_reference", "tool_name": "g"}])]},
            f"[user|u]{CALL_SHOWN}[tool|g]A:",
        ),
        (
            {"messages": [U, USED, result([{"type": "image", "source": {"data": "AA=="}}])]},
            f"[user|u]{CALL_SHOWN}[tool|[image left out: this model reads text only]]A:",
        ),
        (
            {"messages": [U, {"role": "assistant", "content": [text(""), USE]}]},
            f"[user|u]{CALL_SHOWN}A:",
        ),
        (
            {
                "messages": [
                    U,
                    {
                        "role": "assistant",
                        "content": [
                            {
                                "type": "server_tool_use",
                                "id": "s",
                                "name": "web_search",
                                "input": {},
                            },
                            {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
                            text("ok"),
                        ],
                    },
                    U,
                ]
            },
            "[user|u][assistant|ok][user|u]A:",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "document", "source": {"type": "text", "data": "doc"}},
                            {"type": "search_result", "title": "T", "content": [text("found")]},
                        ],
                    }
                ]
            },
            "[user|doc\nT\nfound]A:",
        ),
        ({"messages": [U, {"role": "assistant", "content": "Once"}]}, "[user|u][assistant|Once"),
        ({"messages": [U, {"role": "assistant", "content": ""}]}, "[user|u][assistant|]A:"),
    ],
)
def test_what_messages_may_hold(ask: Asked, body: Json, prompt: str) -> None:
    ask.said("messages", max_tokens=20, **body)
    assert ask.prompt == prompt


BILLING = "x-anthropic-billing-header: cc_version=2.1.117.{0}; cc_entrypoint=cli; cch={0};"


@pytest.mark.parametrize(
    "system",
    [
        lambda line: [text(line), text("Be kind.")],
        lambda line: [text("Be kind."), text(line)],
        lambda line: f"{line}\nBe kind.",
        lambda line: [text(f"{line}\nBe kind.")],
    ],
)
def test_a_line_that_changes_with_each_request_is_left_out(
    ask: Asked, system: Callable[[str], Any]
) -> None:
    for nonce in ("1a", "2b"):
        ask.said("messages", max_tokens=9, messages=[U], system=system(BILLING.format(nonce)))
        assert ask.prompt == "[system|Be kind.][user|u]A:"
    ask.said("messages", max_tokens=9, messages=[U], system=[text(BILLING.format("1a"))])
    assert ask.prompt == "[user|u]A:"


def test_tools_of_anthropics_servers_are_left_out_and_those_of_clients_known(ask: Asked) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    own = {"name": "get", "input_schema": SCHEMA, "strict": True, "type": "custom"}
    bash = {"type": "bash_20250124", "name": "bash"}
    run = '<tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call>'
    body = {"max_tokens": 99, "messages": [U]}
    (use,) = ask.said("messages", run, tools=[search, own, bash], **body)["content"]
    assert (use["name"], use["input"]) == ("bash", {"command": "ls"})
    refused = ask("messages", tools=[search], **body)
    assert refused.status_code == 400
    assert "web_search" in refused.json()["error"]["message"]


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer"])
def test_a_message_without_content_is_named(ask: Asked, role: str) -> None:
    refused = ask("messages", max_tokens=3, messages=[U, {"role": role}])
    assert refused.status_code == 400
    assert "messages[1].content must be a string or a list" in refused.json()["error"]["message"]


def test_more_tokens_than_there_is_room_for_are_as_many_as_there_is(ask: Asked) -> None:
    ask.said("messages", max_tokens=32_000, messages=[U])
    submit = ask.server.node.expect(Submit)
    assert submit.max_tokens == 4096 - len(submit.prompt)
    assert ask("chat/completions", max_tokens=32_000, messages=[U]).status_code == 400


# --- /v1/responses --------------------------------------------------------------------------------

GO = {"role": "user", "content": "go"}


def item(kind: str, **fields: Any) -> Json:
    return {"type": kind, **fields}


@pytest.mark.parametrize(
    ("items", "prompt"),
    [
        ([item("web_search_call", id="w", status="completed")], ""),
        ([item("mcp_list_tools", id="m", tools=[])], ""),
        (
            [item("custom_tool_call", call_id="c", name="apply_patch", input="x")],
            '[assistant|<apply_patch{"input": "x"}>]',
        ),
        (
            [
                item("local_shell_call", call_id="c", action={"type": "exec", "command": ["ls"]}),
                item("local_shell_call_output", id="c", output="r"),
            ],
            '[assistant|<local_shell{"command": ["ls"]}>][tool|r]',
        ),
        (
            [item("mcp_call", id="m", name="f", arguments="{}", output="r")],
            "[assistant|<f{}>][tool|r]",
        ),
        (
            [
                item("function_call", call_id="a", name="f", arguments="{}"),
                item("function_call", call_id="b", name="f", namespace="n", arguments="{}"),
                item("function_call_output", call_id="a", output="1"),
                item("function_call_output", call_id="b", output=[item("input_text", text="2")]),
            ],
            "[assistant|<f{}><n__f{}>][tool|1][tool|2]",
        ),
        (
            [
                {"role": "assistant", "content": [item("output_text", text="a")]},
                item("function_call", call_id="a", name="f", arguments="{}"),
                item("function_call_output", call_id="a", output=[item("input_image")]),
            ],
            "[assistant|a<f{}>][tool|[image left out: this model reads text only]]",
        ),
        ([{"role": "assistant", "content": [item("refusal", refusal="no")]}], "[assistant|no]"),
        ([{"role": "developer", "content": "d"}], "[user|d]"),
    ],
)
def test_what_items_may_be(ask: Asked, items: list[Json], prompt: str) -> None:
    ask.said("responses", input=[GO, *items, GO])
    assert ask.prompt == f"[user|go]{prompt}[user|go]A:"


def test_instructions_and_what_a_developer_says_are_one(ask: Asked) -> None:
    developer = item("message", role="developer", content=[item("input_text", text="No jokes.")])
    ask.said("responses", instructions="Be brief.", input=[developer, GO])
    assert ask.prompt == "[system|Be brief.\n\nNo jokes.][user|go]A:"


def test_thoughts_between_calls_come_back(tmp_path: Path) -> None:
    template = TEMPLATES["prints JSON"].replace(
        "{{ m.content }}", "{{ m.thinking }}/{{ m.content }}"
    )
    with asked_with(tmp_path, template + "{# <think> #}") as ask:
        asked = {
            "tools": [item("function", name="get")],
            "include": ["reasoning.encrypted_content"],
        }
        thought = f"<think>why\n</think>{CALLED}"
        first = ask.said("responses", thought, input=[GO], **asked)
        reasoning, call = first["output"]
        del reasoning["content"]  # as Codex does
        output = item("function_call_output", call_id=call["call_id"], output="r")
        ask.said("responses", input=[GO, reasoning, call, output])
        assert ask.prompt == '[user|/go][assistant|why\n/<get{"p": "é"}>][tool|/r]A:'
        summed = item("reasoning", summary=[item("summary_text", text="s")], encrypted_content="x")
        ask.said("responses", input=[GO, summed, call, output])
        assert ask.prompt == '[user|/go][assistant|s/<get{"p": "é"}>][tool|/r]A:'


OPEN_RESPONSES = (
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model"),
    *("previous_response_id", "instructions", "output", "error", "tools", "tool_choice"),
    *("truncation", "parallel_tool_calls", "text", "top_p", "presence_penalty"),
    *("frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage"),
    *("max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata"),
    *("safety_identifier", "prompt_cache_key"),
)


def test_the_response_object_is_complete(ask: Asked) -> None:
    made = ask.said("responses", input="Hi", temperature=0.5, prompt_cache_key="k", text={})
    assert [name for name in OPEN_RESPONSES if name not in made] == []
    numbers = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs")
    assert [made[name] for name in numbers] == [0.5, 1.0, 0.0, 0.0, 0]
    assert made["completed_at"] >= made["created_at"]
    assert (made["prompt_cache_key"], made["text"]) == ("k", {"format": {"type": "text"}})


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "web_search", "external_web_access": False},
        {"type": "image_generation"},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "mcp", "server_label": "x", "server_url": "http://x"},
    ],
)
def test_tools_of_openais_servers_are_left_out(ask: Asked, kind: Json) -> None:
    own = {"type": "function", "name": "get", "parameters": SCHEMA}
    made = ask.said("responses", CALLED, input="Hi", tools=[kind, own])
    assert [each["type"] for each in made["output"]] == ["function_call"]
    assert made["tools"] == [kind, own]
    refused = ask("responses", input="Hi", tools=[kind])
    assert "only functions are offered" in refused.json()["error"]["message"]


def test_some_tools_may_be_allowed(ask: Asked) -> None:
    tools = [{"type": "function", "name": name} for name in ("get", "put")]
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "put"}],
    }
    made = ask.said("responses", CALLED, input="Hi", tools=tools, tool_choice=allowed)
    assert made["output"][0]["content"][0]["text"] == CALLED
    refused = ask("responses", input="Hi", tools=tools, tool_choice={**allowed, "tools": []})
    assert "allows none of tools" in refused.json()["error"]["message"]


def test_a_custom_tools_call_streams_as_its_own(ask: Asked) -> None:
    tools = [{"type": "custom", "name": "apply_patch", "description": "Edits."}]
    spoken = '<tool_call>{"name": "apply_patch", "arguments": {"input": "a\\nb"}}</tool_call>'
    raw = ask("responses", spoken, input="Hi", tools=tools, stream=True).text
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    told = {event["type"]: event for event in events}
    assert told["response.custom_tool_call_input.done"]["input"] == "a\nb"
    assert told["response.output_item.added"]["item"]["type"] == "custom_tool_call"
    assert told["response.output_item.done"]["item"]["input"] == "a\nb"
    assert "response.function_call_arguments.delta" not in told


def test_calls_of_one_answer_have_ids_of_their_own(tmp_path: Path) -> None:
    each = (
        '<|tool_call_begin|>functions.get:0<|tool_call_argument_begin|>{"p": "é"}<|tool_call_end|>'
    )
    spoken = f"<|tool_calls_section_begin|>{each}{each}<|tool_calls_section_end|>"
    files = write_tokenizer(tmp_path, byte_level_backend(), chat_template=TEMPLATES["prints JSON"])
    tokenizer = Tokenizer.load(files)
    syntax = SyntaxOptions(tool_call_parser="kimi_k2")
    with RunningServer(tokenizer, GenerationDefaults((2,)), syntax=syntax, context=4096) as server:
        tools = [{"type": "function", "function": {"name": "get", "parameters": SCHEMA}}]
        made = Asked(server, tokenizer).said("chat/completions", spoken, messages=[U], tools=tools)
    first, second = made["choices"][0]["message"]["tool_calls"]
    assert first["id"] == "functions.get:0" != second["id"]
