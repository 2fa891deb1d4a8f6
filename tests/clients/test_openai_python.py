"""OpenAI's own library for Python."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pydantic
import pytest

from tests.clients.documented import NAME, run_documented
from tests.clients.model import CONTEXT
from tests.support.served import serving

QUESTION: list[Any] = [{"role": "user", "content": "Hello world"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Bonn", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


class Trip(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    long: bool


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def chat(client: openai.OpenAI, **options: Any) -> Any:
    wanted = {"messages": QUESTION, "max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(model=NAME, **wanted)


def test_as_documented(served) -> None:
    left: Any = run_documented("OpenAI for Python", served.url)
    assert left["answer"].choices[0].message.role == "assistant"


def test_whole_streamed_and_asynchronous_answers_are_one(client, base_url) -> None:
    whole = chat(client)
    stream = chat(client, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    async def asynchronous() -> list[str]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as aclient:
            asked = [
                aclient.chat.completions.create(
                    model=NAME, messages=QUESTION, max_tokens=12, temperature=0
                )
                for _ in range(8)
            ]
            return [a.choices[0].message.content or "" for a in await asyncio.gather(*asked)]

    assert set(asyncio.run(asynchronous())) == {whole.choices[0].message.content}


def test_the_librarys_own_helper_for_streams_collects_the_answer(client) -> None:
    whole = chat(client).choices[0].message.content
    with client.chat.completions.stream(
        model=NAME, messages=QUESTION, max_tokens=12, temperature=0, logprobs=True, stop=whole[-2:]
    ) as stream:  # this helper takes no answer that was cut off
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.done"} <= kinds
    assert final.choices[0].message.content == whole[: whole.index(whole[-2:])]


def test_log_probabilities(client) -> None:
    (choice,) = chat(client, logprobs=True, top_logprobs=3).choices
    assert len(choice.logprobs.content) == 12
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy
    completion = client.completions.create(
        model=NAME, prompt="Hello", max_tokens=4, temperature=0, logprobs=2, echo=True
    )
    scores = completion.choices[0].logprobs
    assert scores
    assert scores.tokens
    assert scores.token_logprobs
    assert scores.token_logprobs[0] is None
    assert "".join(scores.tokens) == completion.choices[0].text


def test_n_and_stop(client) -> None:
    several = chat(client, n=3, temperature=1, seed=5)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) == 3
    text = client.completions.create(model=NAME, prompt="Hello", max_tokens=30, temperature=0)
    whole = text.choices[0].text
    stopped = client.completions.create(
        model=NAME, prompt="Hello", max_tokens=30, temperature=0, stop=[whole[5:8]]
    )
    assert stopped.choices[0].text == whole[: whole.index(whole[5:8])]
    assert stopped.choices[0].finish_reason == "stop"


def test_models(client) -> None:
    assert [card.id for card in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_errors_have_the_librarys_types(client) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {CONTEXT}"):
        client.completions.create(model=NAME, prompt="a b c d " * 2000)
    with pytest.raises(openai.BadRequestError) as wrong:
        chat(client, temperature=-1)
    assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input="x", encoding_format="float")


def test_tools(client) -> None:
    (choice,) = chat(
        client, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=80
    ).choices
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert call.function.name == "weather"
        jsonschema.validate(
            pydantic.TypeAdapter(Any).validate_json(call.function.arguments), SCHEMA
        )
    said = [choice.message.model_dump(exclude_none=True)]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        for call in choice.message.tool_calls
    ]
    assert chat(client, messages=[*QUESTION, *said, *results], tools=[TOOL]).choices


def test_an_answer_is_parsed_into_a_model(client) -> None:
    parsed = client.chat.completions.parse(
        model=NAME, messages=QUESTION, response_format=Trip, max_tokens=60
    )
    assert isinstance(parsed.choices[0].message.parsed, Trip)
    with client.chat.completions.stream(
        model=NAME, messages=QUESTION, response_format=Trip, max_tokens=60
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Trip)


def test_responses(client) -> None:
    asked: Any = {"model": NAME, "input": "Hello", "max_output_tokens": 12, "temperature": 0}
    whole = client.responses.create(**asked, store=False)
    events = list(client.responses.create(**asked, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"  # cut off by max_output_tokens
    assert events[-1].response.output_text == whole.output_text != ""


def test_it_tries_again_when_the_server_is_full(model_folder: Path) -> None:
    flags = ("--served-model-name", NAME, "--max-num-seqs", "1", "--max-queued-requests", "0")
    roles = ("--attn-gpus", "1", "--ffn-gpus", "1", "--micro-batches", "1")
    with serving(str(model_folder), *roles, *flags) as served:
        statuses: list[int] = []

        def note(response: httpx.Response) -> None:
            statuses.append(response.status_code)
            if response.status_code == 503:
                busy.close()

        with (
            httpx.Client(event_hooks={"response": [note]}, timeout=60) as http,
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", http_client=http) as client,
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as first,
        ):
            busy = first.completions.create(
                model=NAME,
                prompt="Hello",
                max_tokens=CONTEXT - 20,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            next(iter(busy))
            assert client.completions.create(model=NAME, prompt="Hello", max_tokens=2).choices
        assert (statuses[0], statuses[-1]) == (503, 200)
