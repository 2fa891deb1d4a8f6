"""The newcomer's way: serve the demo model and talk to it, with real clients."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest

from megainfer import LLM, SamplingParams
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.model_folder.demo.model import DEMO_MODEL_NAME, ensure_demo_model
from megainfer.text.tokenizer import load_tokenizer
from server.openai.syntax import AnswerSyntax
from server.parsing.notations import NOTATIONS
from tests.support.demo_model import dense_of, logits_and_greedy
from tests.support.forked import withheld
from tests.support.served import Served, serving

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """As a newcomer starts it: by a new interpreter."""
    ensure_demo_model()
    with withheld(True), serving("--dtype", "float32", "--max-model-len", "1024") as running:
        yield running


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=90)


def test_it_is_listed_by_its_name(client):
    (card,) = client.models.list().data
    assert card.id == DEMO_MODEL_NAME


def test_a_chat_is_answered(client):
    answer = client.chat.completions.create(
        model=DEMO_MODEL_NAME, messages=QUESTION, temperature=0, max_tokens=30
    )
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
    assert answer.usage.prompt_tokens == 37
    assert answer.usage.completion_tokens == 8


def test_a_stream_gives_the_same_text_in_pieces_and_the_usage(client):
    chunks = list(
        client.chat.completions.create(
            model=DEMO_MODEL_NAME,
            messages=QUESTION,
            temperature=0,
            max_completion_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == ANSWER
    assert len([piece for piece in pieces if piece]) > 3
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 32  # asked before


def test_stop_and_n_and_seed(client):
    stopped = client.completions.create(
        model=DEMO_MODEL_NAME,
        prompt="One, two, three,",
        temperature=0,
        max_tokens=20,
        stop=["six"],
        extra_body={"repetition_penalty": 1.0},  # it counts, and so repeats itself
    )
    assert "four" in stopped.choices[0].text
    assert "six" not in stopped.choices[0].text
    assert stopped.choices[0].finish_reason == "stop"

    def poems() -> list[str]:
        answer = client.chat.completions.create(
            model=DEMO_MODEL_NAME,
            messages=[{"role": "user", "content": "Write a poem."}],
            n=2,
            seed=7,
            temperature=1.0,
            max_tokens=16,
        )
        return [choice.message.content for choice in answer.choices]

    first, second = poems()
    assert first != second
    assert poems() == [first, second]


def test_errors_have_the_clients_own_types(client):
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024"):
        client.completions.create(model=DEMO_MODEL_NAME, prompt="word " * 2000)


def test_megainfer_chat_answers_a_pipe(served):
    done = subprocess.run(
        [sys.executable, "-m", "megainfer", "chat", "--url", served.url, "--temperature", "0"],
        input="What is the capital of France?\n",
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout


def test_megainfer_chat_without_a_server_says_what_to_do():
    done = subprocess.run(
        [sys.executable, "-m", "megainfer", "chat", "--url", "http://127.0.0.1:9"],
        input="Hello\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "megainfer serve" in done.stderr


def test_two_processes_say_what_the_dense_original_says():
    """Upcycled, split over attention and experts, batched and chunked: still the dense model."""
    folder = ensure_demo_model()
    questions = ["What is the capital of France?", "Name three colours.", "Hi"]
    with LLM(dtype="float32", max_num_batched_tokens=32, micro_batches=2) as llm:
        prompts = [llm.chat_prompt([{"role": "user", "content": text}]) for text in questions]
        results = llm.generate(
            prompts, SamplingParams(temperature=0, max_tokens=16), progress=False
        )
    import torch

    dense = dense_of(folder)
    for prompt, result in zip(prompts, results, strict=True):
        _, ids = logits_and_greedy(dense, torch.tensor([prompt]), 16)
        assert result.outputs[0].token_ids == ids[len(prompt) :]


def test_the_recipe_recommends_how_to_sample():
    config = json.loads((ensure_demo_model() / "generation_config.json").read_text())
    assert (config["temperature"], config["repetition_penalty"]) == (0.2, 1.1)


def test_tools_are_offered_to_it_and_its_calls_are_known(client):
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    answer = client.chat.completions.create(
        model=DEMO_MODEL_NAME, messages=QUESTION, temperature=0, max_tokens=8, tools=tools
    )
    assert answer.usage.prompt_tokens > 60, "the tools are no part of the prompt"
    tokenizer = load_tokenizer(ensure_demo_model())
    assert AnswerSyntax.of(SyntaxOptions(), tokenizer).calls is NOTATIONS["hermes"]
