"""langchain-openai."""

import asyncio
from typing import Any

import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

from tests.clients.documented import NAME, run_documented


class Trip(pydantic.BaseModel):
    """A trip."""

    model_config = pydantic.ConfigDict(extra="forbid")
    long: bool


@tool
def weather(warm: bool) -> str:
    """The weather."""
    return "sunny" if warm else "cold"


@pytest.fixture(scope="module")
def model(base_url: str) -> ChatOpenAI:
    options: Any = {"base_url": base_url, "api_key": "none", "max_retries": 0}
    return ChatOpenAI(model=NAME, max_tokens=60, temperature=0, stream_usage=True, **options)


def test_as_documented(served) -> None:
    left: Any = run_documented("LangChain", served.url)
    assert isinstance(left["answer"], AIMessage)


def test_invoke_batch_and_stream(model) -> None:
    whole = model.invoke("Hello world")
    assert whole.usage_metadata["output_tokens"] > 0
    assert [answer.content for answer in model.batch(["Hello world"] * 4)] == [whole.content] * 4
    total: Any = None
    for chunk in model.stream("Hello world"):
        total = chunk if total is None else total + chunk
    assert total.content == whole.content
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert asyncio.run(model.ainvoke("Hello world")).content == whole.content


def test_completions(base_url) -> None:
    options: Any = {"base_url": base_url, "api_key": "none", "max_retries": 0}
    completions = OpenAI(model=NAME, max_tokens=8, temperature=0, **options)
    assert "".join(completions.stream("Hello")) == completions.invoke("Hello")


def test_bound_tools_are_called_and_their_results_taken(model) -> None:
    called = model.bind_tools([weather], tool_choice="weather").invoke("Hello")
    (call,) = called.tool_calls
    assert call["name"] == "weather"
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert model.bind_tools([weather]).invoke([HumanMessage("Hello"), called, result])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model, method) -> None:
    assert isinstance(model.with_structured_output(Trip, method=method).invoke("Hello"), Trip)
