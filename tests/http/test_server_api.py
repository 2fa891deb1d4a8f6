"""The API over real HTTP: the openai client and raw requests against a mock attention node."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.messages.requests import Abort, FinishReason, Submit, TokenEvent
from megainfer.sampling import SamplingParams
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from server.openai.request_size import check_copies
from tests.support.scripted_server import (
    CHAT_TEMPLATE,
    CONTEXT,
    RunningServer,
    byte_level_backend,
    endless,
    raw_request,
    speaking,
)

TOKENIZER = Tokenizer(
    FastBackend(byte_level_backend()), {"default": ChatTemplate(CHAT_TEMPLATE, {})}
)
TEXT = "Hello world, how are 😀 you?"
IDS = TOKENIZER.encode(TEXT)
(END,) = TOKENIZER.encode("<|im_end|>")
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    defaults = GenerationDefaults((END,), temperature=0.6, top_k=20)
    with RunningServer(TOKENIZER, defaults) as server:
        yield server


@pytest.fixture
def server(running: RunningServer) -> RunningServer:
    """The server of this module, with a node that says TEXT and an end token."""
    running.node.script = speaking(*IDS, END, cached=16)
    while not running.node.heard.empty():
        running.node.heard.get_nowait()
    return running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    url = f"{server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        yield client


def events(response: httpx.Response) -> list[Any]:
    """What the events of a stream hold; the last must be the end marker."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# --- chat -----------------------------------------------------------------------------------------


def test_a_chat_answer(client: openai.OpenAI, server: RunningServer) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("Hello", "you")]},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", TEXT)
    submit = server.node.expect(Submit)
    assert TOKENIZER.decode(submit.prompt, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello\nyou<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert submit.max_tokens == CONTEXT - len(submit.prompt)
    assert submit.stop_token_ids == [END]
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(submit.prompt), len(IDS) + 1)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 16


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=CHAT, stream=True, stream_options={"include_usage": True}
        )
    )
    *parts, last = chunks
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert parts[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].delta.role for part in parts[1:]] == [None] * (len(parts) - 1)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == TEXT
    assert [part.choices[0].finish_reason for part in parts][-2:] == [None, "stop"]
    assert [part.usage for part in parts] == [None] * len(parts)
    assert last.choices == []
    assert last.usage.completion_tokens == len(IDS) + 1
    assert last.usage.prompt_tokens_details.cached_tokens == 16


def test_the_bytes_of_a_stream(http: httpx.Client) -> None:
    body = {"model": "org/alias", "messages": CHAT, "stream": True, "max_tokens": 1}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, second = events(response)
    assert "usage" not in first
    assert first["model"] == "org/alias"
    assert first["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert second["choices"][0]["delta"] == {"content": TOKENIZER.decode(IDS[:1])}
    assert second["choices"][0]["finish_reason"] == "length"


def test_no_piece_of_a_stream_holds_half_a_character(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=CHAT, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert any("😀" in piece for piece in pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_max_completion_tokens_goes_before_max_tokens(
    client: openai.OpenAI, server: RunningServer
) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, max_completion_tokens=2, max_tokens=50
    )
    assert answer.choices[0].finish_reason == "length"
    assert server.node.expect(Submit).max_tokens == 2


# --- completions ----------------------------------------------------------------------------------


def test_a_completion_with_the_defaults_of_the_model(
    client: openai.OpenAI, server: RunningServer
) -> None:
    answer = client.completions.create(model="tiny", prompt="The quick")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == TOKENIZER.decode(IDS[:16])
    submit = server.node.expect(Submit)
    assert submit.prompt == TOKENIZER.encode("The quick")
    assert (submit.temperature, submit.top_p, submit.top_k) == (0.6, 1.0, 20)
    assert submit.max_tokens == 16


def test_sampling_fields_reach_the_node(client: openai.OpenAI, server: RunningServer) -> None:
    extra = {"top_k": 3, "stop_token_ids": [9], "ignore_eos": True, "unheard_of": {"a": 1}}
    client.completions.create(
        model="tiny",
        prompt=[5, 6],
        temperature=0,
        top_p=0.25,
        seed=11,
        max_tokens=3,
        extra_body=extra,
    )
    assert server.node.expect(Submit) == Submit(
        request_id=_last_id(server),
        prompt=[5, 6],
        temperature=0.0,
        top_p=0.25,
        top_k=3,
        seed=11,
        max_tokens=3,
        stop_token_ids=[9],
        client="address 127.0.0.1",
    )


def _last_id(server: RunningServer) -> str:
    return list(server.node._playing)[-1]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hello", [TOKENIZER.encode("Hello")]),
        (["Hello", "The fox"], [TOKENIZER.encode("Hello"), TOKENIZER.encode("The fox")]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_every_form_of_prompt(
    client: openai.OpenAI, server: RunningServer, prompt: Any, expected: list[list[int]]
) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=2)
    heard = [server.node.expect(Submit).prompt for _ in expected]
    assert sorted(heard) == sorted(expected)
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))
    assert answer.usage.prompt_tokens == sum(map(len, expected))
    assert answer.usage.completion_tokens == 2 * len(expected)


def saying_its_prompt(submit: Submit) -> AsyncIterator[TokenEvent]:
    """A script: the prompt again, and the seed's last digit as the number of exclamations."""
    (mark,) = TOKENIZER.encode("!")
    tokens = submit.prompt + [mark] * (submit.seed % 10)
    return speaking(*tokens, END)(submit)


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_to_each_of_several_prompts(
    client: openai.OpenAI, server: RunningServer, stream: bool
) -> None:
    server.node.script = saying_its_prompt
    answer = client.completions.create(
        model="tiny", prompt=["Hello", "The fox"], n=3, seed=100, max_tokens=50, stream=stream
    )
    texts = [""] * 6
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == ["Hello", "Hello!", "Hello!!", "The fox", "The fox!", "The fox!!"]
    if not stream:
        prompts = len(TOKENIZER.encode("Hello")) + len(TOKENIZER.encode("The fox"))
        assert answer.usage.prompt_tokens == prompts


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["ld, h", ["never", "ld, h", "xx"]])
def test_a_stop_string_over_several_tokens(
    client: openai.OpenAI, server: RunningServer, stop: Any, stream: bool
) -> None:
    assert all("ld, h" not in TOKENIZER.decode([token]) for token in IDS)
    answer = client.completions.create(
        model="tiny", prompt="x", max_tokens=99, stop=stop, stream=stream
    )
    choices = [part.choices[0] for part in (answer if stream else [answer])]
    assert "".join(choice.text for choice in choices) == "Hello wor"
    assert choices[-1].finish_reason == "stop"
    if not stream:
        assert answer.usage.completion_tokens < len(IDS)


def test_a_long_prompt_is_encoded_all_the_same(
    client: openai.OpenAI, server: RunningServer
) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256 tokens"):
        client.completions.create(model="tiny", prompt=TEXT * 500)


# --- models, health, documents --------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    cards = client.models.list().data
    assert [(card.id, card.object, card.owned_by) for card in cards] == [
        ("tiny", "model", "megainfer"),
        ("org/alias", "model", "megainfer"),
    ]
    assert client.models.retrieve("org/alias").model_dump()["max_model_len"] == CONTEXT
    with pytest.raises(openai.NotFoundError, match="'nope' isn't served here; served: tiny, org"):
        client.models.retrieve("nope")


def test_health_and_the_api_document(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    document = http.get("/openapi.json").json()
    post = document["paths"]["/v1/completions"]["post"]
    name = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
    assert "prompt" in document["components"]["schemas"][name]["required"]


# --- errors ---------------------------------------------------------------------------------------


BAD_COMPLETIONS = [
    ({}, "prompt", "prompt: field required"),
    ({"prompt": 5}, "prompt", "must be a string, a list of strings, a list of token ids"),
    ({"prompt": []}, "prompt", "none of them empty"),
    ({"prompt": ["a", 1]}, "prompt", "not a mixture"),
    ({"prompt": [True]}, "prompt", "not a mixture"),
    ({"prompt": [[1], []]}, "prompt", "not a mixture"),
    ({"prompt": ""}, "prompt", "the prompt is empty"),
    ({"prompt": [1, 5000]}, "prompt", "token ids from 0 to 999, but holds 5000"),
    ({"prompt": [1] * 300}, "prompt", "your prompt has 300 tokens"),
    ({"prompt": "x", "max_tokens": 999}, "max_tokens", "1 in the prompt, 999 in the completion"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens", "at least 1, but is 0"),
    ({"prompt": "x", "max_tokens": "5"}, "max_tokens", "valid integer, not '5'"),
    ({"prompt": "x", "max_tokens": 1.5}, "max_tokens", "valid integer, not 1.5"),
    ({"prompt": "x", "n": True}, "n", "valid integer, not True"),
    ({"prompt": "x", "n": 1000}, "n", "n must be between 1 and 128"),
    ({"prompt": "x", "temperature": 3}, "temperature", "between 0 and 2, but is 3"),
    ({"prompt": "x", "temperature": [1]}, "temperature", "valid number, not [1]"),
    ({"prompt": "x", "top_p": -0.1}, "top_p", "between 0 and 1"),
    ({"prompt": "x", "top_k": -5}, "top_k", "between -1 and"),
    ({"prompt": "x", "seed": 2**70}, "seed", "seed must be between"),
    ({"prompt": "x", "stop": 5}, "stop", "valid string, not 5 or input should be a valid list"),
    ({"prompt": "x", "stop": [1]}, "stop[0]", "valid string, not 1"),
    ({"prompt": "x", "stop": ["a"] * 99}, "stop", "at most 16 strings, but holds 99"),
    ({"prompt": "x", "stop": ""}, "stop", "empty string"),
    ({"prompt": "x", "stop_token_ids": [5000]}, "stop_token_ids", "but holds 5000"),
    ({"prompt": "x", "stream": "yes"}, "stream", "valid boolean, not 'yes'"),
    ({"prompt": "x", "stream_options": {}}, "stream_options", "only be given with stream: true"),
    ({"prompt": "x", "echo": "yes"}, "echo", "valid boolean, not 'yes'"),
    ({"prompt": "x", "logprobs": 21}, "logprobs", "less than or equal to 20, not 21"),
    ({"prompt": "x", "logprobs": -1}, "logprobs", "greater than or equal to 0, not -1"),
    ({"prompt": "x", "prompt_logprobs": 21}, "prompt_logprobs", "less than or equal to 20"),
    ({"prompt": "x", "logprobs_mode": "logits"}, "logprobs_mode", "raw_logprobs or processed_"),
    ({"prompt": "x", "return_routed_experts": True}, "return_routed_experts", "started with --en"),
    ({"prompt": "x", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream: true"),
    ({"prompt": ["x"] * 2049}, "prompt", "at most 2048 prompts, but holds 2049"),
    ({"prompt": "x", "best_of": 2}, "best_of", "best_of isn't offered"),
    ({"prompt": "x", "suffix": "y"}, "suffix", "suffix isn't offered"),
    ({"prompt": "x", "logit_bias": {"one": 5}}, "logit_bias", "'one' is no token id"),
    ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias", "between -100 and 100, but is 101"),
    ({"prompt": "x", "logit_bias": {"1000": 1}}, "logit_bias", "from 0 to 999, but holds 1000"),
    ({"prompt": "x", "logit_bias": {"1": None}}, "logit_bias[1]", "valid number"),
    (
        {"prompt": "x", "logit_bias": {str(i): 1 for i in range(1025)}},
        "logit_bias",
        "at most 1024 entries, but holds 1025",
    ),
    ({"prompt": "x", "presence_penalty": 2.5}, "presence_penalty", "between -2 and 2"),
    ({"prompt": "x", "frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
    ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty", "between 0.01 and 100"),
    ({"prompt": "x", "min_p": 1.1}, "min_p", "min_p must be between 0 and 1"),
    ({"prompt": "x", "min_tokens": -1}, "min_tokens", "between 0 and 2147483647, but is -1"),
    ({"prompt": "x", "min_tokens": 17}, "min_tokens", "at most max_tokens, which is 16"),
    ({"prompt": "x", "allowed_token_ids": [1000]}, "allowed_token_ids", "but holds 1000"),
    ({"prompt": "x", "allowed_token_ids": [1] * 1001}, "allowed_token_ids", "at most 1000"),
    ({"prompt": "x", "n": 128, "allowed_token_ids": [1] * 4097}, "allowed_token_ids", "each of n"),
    (
        {
            "prompt": ["x"] * 2000,
            "n": 2,
            "allowed_token_ids": [1] * 1000,
            "stop_token_ids": [2] * 99,
        },
        "allowed_token_ids",
        "each of 4000 sequences (2000 prompts), 4396000 token ids and characters",
    ),
    (
        {"prompt": ["x"] * 2000, "n": 2, "bad_words": ["a" * 256] * 5},
        "bad_words",
        "may be at most 4194304; bad_words is the largest, of 1280: make it shorter",
    ),
    ({"prompt": "x", "bad_words": [""]}, "bad_words", "empty string"),
    ({"prompt": "x", "bad_words": ["a"] * 129}, "bad_words", "at most 128 strings"),
    ({"prompt": "x", "bad_words": ["a" * 257]}, "bad_words", "at most 256 characters, not 257"),
    ({"prompt": "x", "stop": "a" * 1025}, "stop", "at most 1024 characters, not 1025"),
    ({"prompt": "x", "stop_token_ids": [1] * 1025}, "stop_token_ids", "at most 1024 token ids"),
    ({"prompt": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1 or at least 1"),
    ({"prompt": "x", "priority": 2**40}, "priority", "priority must be between"),
    ({"prompt": "x", "priority": 0.5}, "priority", "valid integer"),
    ({"prompt": "x", "user": 5}, "user", "valid string, not 5"),
    ({"prompt": "x", "metadata": []}, "metadata", "valid dictionary"),
    (
        {"prompt": "x", "stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        "valid boolean",
    ),
]
BAD_CHATS = [
    ({}, "messages", "messages: field required"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "Hi"}, "messages", "valid list, not 'Hi'"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "'wizard'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "must be a string"),
    ({"messages": [*CHAT, {"role": "user", "content": 5}]}, "messages[1].content", "list of text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content",
        "offered, not {'type': 'image_url'",
    ),
    ({"messages": CHAT, "max_completion_tokens": 999}, "max_tokens", "999 in the completion"),
    ({"messages": CHAT, "tools": [{"type": "function"}]}, "tools[0]", "must be {"),
    ({"messages": CHAT, "response_format": {"type": "xml"}}, "response_format", "must be text"),
    ({"messages": CHAT, "logprobs": 1}, "logprobs", "valid boolean, not 1"),
    ({"messages": CHAT, "top_logprobs": 2}, "top_logprobs", "with logprobs: true"),
    ({"messages": CHAT, "top_logprobs": 21, "logprobs": True}, "top_logprobs", "to 20, not 21"),
    ({"messages": CHAT, "reasoning_effort": "huge"}, "reasoning_effort", "'none', 'minimal'"),
    ({"messages": CHAT, "reasoning_effort": "high"}, "reasoning_effort", "leave it out"),
    ({"messages": CHAT, "echo": True}, "echo", "echo isn't offered by this server, but is True"),
    ({"messages": CHAT, "frequency_penalty": 3}, "frequency_penalty", "between -2 and 2"),
    (
        {"messages": CHAT, "add_generation_prompt": True, "continue_final_message": True},
        "continue_final_message",
        "exclude each other",
    ),
    ({"messages": CHAT * 4097}, "messages", "at most 4096 items"),
    ({"messages": CHAT, "chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs", "not set"),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        "messages.tool_calls",
        "must hold functions with names",
    ),
]


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        *(("completions", *case) for case in BAD_COMPLETIONS),
        *(("chat/completions", *case) for case in BAD_CHATS),
    ],
)
def test_bad_input_is_named(
    http: httpx.Client, server: RunningServer, path: str, body: Any, param: str, message: str
) -> None:
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error.keys() == {"message", "type", "param", "code"}
    assert server.engine.outstanding == 0
    assert server.node.heard.empty()


def test_short_lists_may_go_with_all_sequences_that_are_taken() -> None:
    check_copies(SamplingParams(n=2, logit_bias=dict.fromkeys(range(1024), 1.0)), prompts=512)


def test_a_context_that_is_too_short_has_openais_code(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"prompt": [1] * 300})
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_every_generation_field_reaches_the_node(
    client: openai.OpenAI, server: RunningServer
) -> None:
    client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=5,
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={"7": 2},
        logprobs=4,
        extra_body={
            "min_p": 0.1,
            "min_tokens": 3,
            "repetition_penalty": 1.5,
            "allowed_token_ids": [7, 8],
            "bad_words": [" fox"],
            "prompt_logprobs": 2,
            "logprobs_mode": "processed_logprobs",
            "priority": -4,
        },
    )
    submit = server.node.expect(Submit)
    assert (submit.presence_penalty, submit.frequency_penalty) == (0.5, -1.0)
    assert (submit.repetition_penalty, submit.min_p, submit.min_tokens) == (1.5, 0.1, 3)
    assert submit.logit_bias == {7: 2.0}
    assert submit.allowed_token_ids == [7, 8]
    assert submit.bad_words == [TOKENIZER.encode("fox"), TOKENIZER.encode(" fox")]
    assert (submit.logprobs, submit.prompt_logprobs, submit.priority) == (4, 2, -4)
    assert submit.processed_logprobs


def test_the_authors_defaults_stand_in_for_what_is_left_out() -> None:
    defaults = GenerationDefaults((END,), repetition_penalty=1.1, min_p=0.05)
    with RunningServer(TOKENIZER, defaults) as server, httpx.Client(base_url=server.url) as http:
        for more, expected in (({}, (1.1, 0.05)), ({"repetition_penalty": 1}, (1.0, 0.05))):
            assert http.post("/v1/completions", json={"prompt": "x", **more}).status_code == 200
            submit = server.node.expect(Submit)
            assert (submit.repetition_penalty, submit.min_p) == expected


def test_values_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=CHAT,
        logprobs=False,
        presence_penalty=0,
        frequency_penalty=0.0,
        response_format={"type": "text"},
        tools=[],
        user="me",
        extra_body={"logit_bias": {}, "stop": None, "min_p": 0},
    )
    assert answer.choices[0].message.content == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "x", "temperature": NaN}', "NaN isn't a number in JSON, send a finite one"),
        (b'{"prompt": "x", "top_p": -Infinity}', "Infinity isn't a number in JSON"),
        (b'{"prompt": "x"', "the body isn't valid JSON"),
        (b'{"prompt": "\xff"}', "the body isn't valid JSON"),
        (b'{"prompt": "\\ud800 x"}', "the body isn't valid JSON"),
        (b"[" * 100_000, "the body isn't valid JSON"),
        (b'{"prompt": "x", "temperature": 1e999}', "the body isn't valid JSON"),
        (b"", "the body is empty"),
        (b"[1]", "dictionary"),
    ],
)
def test_broken_json_is_explained(http: httpx.Client, content: bytes, message: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = http.post("/v1/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_other_content_types_are_refused(http: httpx.Client) -> None:
    response = http.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_unknown_models_addresses_and_methods(http: httpx.Client, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the model 'gpt' isn't served") as caught:
        client.chat.completions.create(model="gpt", messages=CHAT)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    response = http.get("/v1/nothing")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")
    for method, path, what in (
        ("POST", "/v1/embeddings", "embeddings"),
        ("GET", "/v1/files/file-1/content", "files"),
        ("POST", "/v1/audio/transcriptions", "audio"),
        ("POST", "/score", "scoring"),
        ("DELETE", "/v1/assistants/a", "assistants"),
        ("POST", "/v1/load_lora_adapter", "LoRA adapters"),
    ):
        response = http.request(method, path, json={})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_offered")
        assert f"MegaInfer doesn't offer {what}" in response.json()["error"]["message"]
    assert http.get("/v1/embeddingsx").json()["error"]["code"] == "unknown_url"
    response = http.get("/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["code"] == "method_not_supported"


def test_too_large_a_body_is_refused_whether_or_not_it_says_so(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"x" * (32 * 2**20 + 1), b"x" * 2**21, (b"x" * 2**20 for _ in range(40))):
        response = http.post("/v1/completions", content=content, headers=headers)
        assert response.status_code == 413
        assert "larger than the 1146880 bytes" in response.json()["error"]["message"]


def test_an_unforeseen_error_is_a_500_without_its_text(
    http: httpx.Client, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server.engine, "submit", broken)
    response = http.post("/v1/completions", json={"prompt": "x"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text


def test_more_than_fits_is_a_503_to_try_again(http: httpx.Client, server: RunningServer) -> None:
    server.node.script = endless(1)
    with raw_request(server, json.dumps({"prompt": [[1]] * 16, "n": 100, "stream": True})) as first:
        first.recv(1)
        response = http.post("/v1/completions", json={"prompt": [[1]] * 16, "n": 100})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "you have 1600 sequences in flight" in response.json()["error"]["message"]
    for _ in range(1600):
        server.node.expect(Abort)
    response = http.post("/v1/completions", json={"prompt": [[1]] * 33, "n": 128})
    assert response.status_code == 400
    assert "one client may have 2048 at a time" in response.json()["error"]["message"]
    assert server.node.heard.empty()


def test_sequences_beyond_the_bound_are_never_made(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.openai.generating.unfold", lambda request: pytest.fail("unfolded"))
    response = http.post("/v1/completions", json={"prompt": [[1]] * 2048, "n": 128})
    assert response.status_code == 400


def test_a_text_that_is_certainly_too_long_is_refused_before_it_is_encoded(
    http: httpx.Client, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest, encoded = len("<|endoftext|>"), []
    encode = Tokenizer.encode

    def watched(self: Tokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
        encoded.append(text)
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    text = "x" * (longest * CONTEXT + 1)
    for path in ("/v1/completions", "/tokenize"):
        error = http.post(path, json={"prompt": text}).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert f"has {len(text)} characters, which are at least 257 tokens" in error["message"]
    chat = {"messages": [{"role": "user", "content": text}]}
    for path in ("/v1/chat/completions", "/tokenize", "/v1/responses"):
        asked = chat if path != "/v1/responses" else {"input": text}
        error = http.post(path, json=asked).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "characters, which are at least" in error["message"]
    assert encoded == []
    cut = http.post("/v1/chat/completions", json={**chat, "truncate_prompt_tokens": 5})
    assert cut.json()["usage"]["prompt_tokens"] == 5
    answer = http.post("/tokenize", json={"prompt": text[1:]}).json()
    assert answer["count"] == len(encode(TOKENIZER, text[1:]))
    cut = http.post("/v1/completions", json={"prompt": text, "truncate_prompt_tokens": 5})
    assert cut.json()["usage"]["prompt_tokens"] == 5


def test_more_log_probabilities_than_an_answer_may_hold_are_refused_with_the_numbers(
    http: httpx.Client, server: RunningServer
) -> None:
    body = {"prompt": [[1, 2]] * 32, "n": 128, "max_tokens": 100, "temperature": 0}
    response = http.post("/v1/completions", json={**body, "logprobs": 20})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "logprobs"
    for text in (f"{32 * 128 * 100 * 21} log", "hold 4194304", "32 prompts", "n = 128"):
        assert text in error["message"]
    assert server.node.heard.empty()
    response = http.post("/v1/completions", json={**body, "n": 1, "prompt_logprobs": 20})
    assert response.status_code == 200, "those of the prompts alone are few"


@pytest.mark.parametrize("field", ["top_k", "min_tokens"])
def test_numbers_beyond_all_bounds_are_refused(
    http: httpx.Client, server: RunningServer, field: str
) -> None:
    messages = [{"role": "user", "content": "x"}]
    response = http.post("/v1/chat/completions", json={"messages": messages, field: 2**70})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert server.engine.outstanding == 0


def test_without_a_tokenizer_token_ids_are_served() -> None:
    with RunningServer(None) as server, httpx.Client(base_url=server.url, timeout=20) as http:
        server.node.script = speaking(5, 6, 7, finish=FinishReason.LENGTH)
        answer = http.post("/v1/completions", json={"prompt": [1, 2]}).json()
        assert answer["choices"][0]["text"] == ""
        assert answer["usage"]["completion_tokens"] == 3
        for path, body in (
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/chat/completions", {"messages": CHAT}),
            ("/v1/completions", {"prompt": [1], "stop": "x"}),
        ):
            response = http.post(path, json=body)
            assert response.status_code == 400
            assert "no tokenizer" in response.text or "has none" in response.text
