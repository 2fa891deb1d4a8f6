"""Answers made to be dear to read: nobody else of the event loop waits for them."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.messages.requests import FinishReason, Submit, TokenEvent
from megainfer.text.tokenizer import Tokenizer
from server.openai.answer import INLINE_SIZE
from tests.support.callbacks import watched_callbacks
from tests.support.endless_calls import ENDLESS
from tests.support.scripted_server import RunningServer, write_tokenizer

AT_ONCE = 16
STREAMED = 8 * INLINE_SIZE
LONGEST_SECONDS = 0.1
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    folder = write_tokenizer(tmp_path_factory.mktemp("endless"))
    return folder, Tokenizer.load(folder)


@pytest.fixture(params=ENDLESS, ids=lambda case: f"{case[0]}-{case[2]!r:.12}")
def server(
    request: pytest.FixtureRequest, tokenizer: tuple[Path, Tokenizer]
) -> Iterator[RunningServer]:
    """Of a model that goes on and on."""
    name, opening, repeated = request.param
    folder, known = tokenizer
    once = known.encode(repeated, False)

    async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
        ids = known.encode(opening, False)
        ids += once * (submit.max_tokens // len(once) + 1)
        for at in range(0, submit.max_tokens, AT_ONCE):
            last = at + AT_ONCE >= submit.max_tokens
            reason = FinishReason.LENGTH if last else None
            yield TokenEvent(submit.request_id, ids[at : at + AT_ONCE], reason)

    with RunningServer(
        known,
        GenerationDefaults((2,)),
        folder=folder,
        syntax=SyntaxOptions(tool_call_parser=name),
        context=2 * STREAMED,
    ) as running:
        running.node.script = script
        yield running


def test_an_answer_without_end_holds_nobody_up(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]}
    with watched_callbacks(server.thread) as callbacks:
        for stream, tokens in ((False, INLINE_SIZE), (True, STREAMED)):
            callbacks.label = "streamed" if stream else "whole"
            asked = {**body, "max_tokens": tokens, "stream": stream}
            if stream:
                asked["stream_options"] = {"include_usage": True}
            answer = httpx.post(
                f"{server.url}/v1/chat/completions", json=asked, timeout=60, trust_env=False
            )
            assert answer.status_code == 200, answer.text
            told = answer.text.split("data: ")[-2] if stream else answer.text
            assert json.loads(told)["usage"]["completion_tokens"] == tokens
    assert callbacks.longest[0] < LONGEST_SECONDS, callbacks.longest
