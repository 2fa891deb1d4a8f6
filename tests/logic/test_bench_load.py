"""The client and the load against a server of OpenAI's shape that does what a test tells it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from megainfer.bench.client import Client, Target, wait_until_ready
from megainfer.bench.load import Result, run_load
from megainfer.bench.metrics import summarise
from megainfer.bench.sample import Outcome, Sample
from megainfer.errors import MegaInferError

Handler = Callable[[dict[str, Any], web.StreamResponse], Awaitable[None]]
WAIT_SECONDS = 10.0


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    """The URL of a server whose completions `handler` writes."""

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["prompt"] == "status":
            return web.json_response({"error": {"message": "broken inside"}}, status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await handler(body, response)
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/completions"
    finally:
        await runner.cleanup()


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text}]}).encode() + b"\n\n"


async def answer(body: dict[str, Any], response: web.StreamResponse) -> None:
    for _ in range(body["max_tokens"]):
        await response.write(event("x"))
    usage = {"prompt_tokens": 5, "completion_tokens": body["max_tokens"]}
    await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode())
    await response.write(b"\n\ndata: [DONE]\n\n")


def target(url: str, **options: Any) -> Target:
    return Target(url, "m", **options)


async def load(
    url: str,
    samples: list[Sample],
    max_concurrency: int | None = None,
    done: Callable[[Outcome], None] = lambda _: None,
    **options: Any,
) -> Result:
    async with Client(target(url, **options)) as client, asyncio.timeout(WAIT_SECONDS):
        return await run_load(client.send, samples, [0.0] * len(samples), max_concurrency, done)


def test_every_request_is_sent_as_asked_and_counted() -> None:
    bodies = []

    async def handler(body: dict[str, Any], response: web.StreamResponse) -> None:
        bodies.append(body)
        await answer(body, response)

    async def main() -> Result:
        async with server(handler) as url:
            samples = [Sample([1, 2], 2, 3), Sample("text", 0, 4)]
            return await load(url, samples, body={"ignore_eos": True, "seed": 1})

    result = asyncio.run(main())
    assert [outcome.error for outcome in result.outcomes] == [None, None]
    assert [outcome.tokens for outcome in result.outcomes] == [3, 4]
    assert [outcome.text for outcome in result.outcomes] == ["xxx", "xxxx"]
    common = {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "seed": 1,
    }
    assert sorted(bodies, key=lambda body: body["max_tokens"]) == [
        {**common, "prompt": [1, 2], "max_tokens": 3},
        {**common, "prompt": "text", "max_tokens": 4},
    ]
    assert summarise(result.outcomes, result.seconds, [99], {}).input_tokens == 10


def test_no_more_at_a_time_than_allowed_and_as_many() -> None:
    running, most = 0, 0

    async def main() -> Result:
        full = asyncio.Event()

        async def handler(body: dict[str, Any], response: web.StreamResponse) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 4:
                full.set()
            await full.wait()  # nobody is answered before four are under way
            running -= 1
            await answer(body, response)

        async with server(handler) as url:
            return await load(url, [Sample([1], 1, 1)] * 12, max_concurrency=4)

    result = asyncio.run(main())
    assert most == 4
    assert all(outcome.ok for outcome in result.outcomes)
    assert sum(outcome.queued > 0.0005 for outcome in result.outcomes) >= 8
    assert summarise(result.outcomes, 1.0, [], {}).peak_concurrency == 4


async def misbehaving(body: dict[str, Any], response: web.StreamResponse) -> None:
    await response.write(event("x"))
    match body["prompt"]:
        case "event":
            await response.write(b'data: {"error": {"message": "overloaded"}}\n\n')
        case "cut":
            raise ConnectionResetError  # the connection is closed within a chunk
        case "short":
            pass
        case "hang":
            await asyncio.Event().wait()
        case "garbage":
            await response.write(b"data: {\n\n")
        case _:
            await answer(body, response)


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("status", "HTTP 500: .*broken inside"),
        ("event", "error event: overloaded"),
        ("cut", "Payload|payload|Disconnected|reset"),
        ("short", "broke off after 1 pieces"),
        ("hang", r"no byte for 0.2 s \(--request-timeout-sec\), after 1 pieces"),
        ("garbage", "DecodeError"),
    ],
)
def test_a_failure_is_told_and_the_others_go_on(prompt: str, error: str) -> None:
    async def main() -> Result:
        async with server(misbehaving) as url:
            samples = [Sample("good", 0, 2), Sample(prompt, 0, 2), Sample("good", 0, 2)]
            return await load(url, samples, silence_seconds=0.2)

    first, failed, last = asyncio.run(main()).outcomes
    assert first.ok
    assert last.ok
    assert not failed.ok
    assert failed.error is not None
    with pytest.raises(MegaInferError, match=error):
        raise MegaInferError(failed.error)


def test_no_server_is_a_failure_of_each_request() -> None:
    async def main() -> Result:
        async with server(answer) as url:
            pass
        return await load(url, [Sample([1], 1, 1)])

    (outcome,) = asyncio.run(main()).outcomes
    assert "Cannot connect" in str(outcome.error)


def test_an_interrupt_keeps_what_was_measured() -> None:
    async def main() -> Result:
        async with server(misbehaving) as url:
            samples = [Sample(prompt, 0, 2) for prompt in ("good", "hang", "good", "hang")]
            answered = 0

            def done(_: Outcome) -> None:
                nonlocal answered
                answered += 1
                if answered == 2:
                    asyncio.get_running_loop().call_soon(running.cancel)  # as Ctrl-C does

            running = asyncio.create_task(load(url, samples, done=done))
            return await running

    result = asyncio.run(main())
    assert [outcome.ok for outcome in result.outcomes] == [True, True]
    assert result.unfinished == 2


def test_waiting_for_a_server_ends_with_the_last_failure() -> None:
    async def main(prompt: str) -> None:
        async with server(misbehaving) as url, Client(target(url)) as client:
            await wait_until_ready(client, Sample(prompt, 0, 1), 0.3)

    asyncio.run(main("good"))
    with pytest.raises(MegaInferError, match=r"not ready within 0.3 s: .*HTTP 500"):
        asyncio.run(main("status"))


def test_chat_takes_text_only() -> None:
    with pytest.raises(MegaInferError, match="--tokenizer"):
        target("u", chat=True).request(Sample([1], 1, 1))
    body = target("u", chat=True).request(Sample("Hi", 1, 9))
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert body["max_completion_tokens"] == 9
