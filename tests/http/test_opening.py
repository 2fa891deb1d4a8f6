"""A server whose model still loads: who waits for an answer waits until there can be one."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.node_socket import new_endpoint
from megainfer.frontend.serving_options import ServingOptions
from server.main import ServerConfig, serve
from server.openai.served_model import ServedModel
from tests.support.scripted_server import WAIT_SECONDS, MockNode, speaking

MODEL = ServedModel(("tiny",), max_model_len=256, vocab_size=1000, created=0)
ORIGIN = "https://app.example"


@asynccontextmanager
async def loading(
    options: ServingOptions | None = None,
) -> AsyncIterator[tuple[httpx.AsyncClient, EngineClient]]:
    """A server that nobody has made ready, and its engine client."""
    engine, stop = EngineClient(new_endpoint(), 1, MODEL.vocab_size), asyncio.Event()
    engine.bind()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        config = ServerConfig(MODEL, options or ServingOptions(), shutdown_seconds=1)
        serving = asyncio.create_task(serve(sock, config, engine, None, stop))
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS, trust_env=False) as http:
            try:
                yield http, engine
            finally:
                stop.set()
                await serving
                await engine.close()


def test_until_it_is_ready_all_but_live_is_503() -> None:
    async def main() -> None:
        async with loading() as (http, engine):
            assert (await http.get("/live")).status_code == 200
            assert (await http.head("/live")).status_code == 200
            paths = ("/v1/models", "/v1/models/tiny", "/", "/health", "/ready", "/metrics")
            for path in (
                *paths,
                "/docs",
                "/version",
                "/page/state",
                "/nothing",
                "/static/page.css",
            ):
                answer = await http.get(path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), path
                probe = path in ("/health", "/ready")
                code = "engine_unavailable" if probe else "loading"
                assert answer.json()["error"]["code"] == code
                assert "attention node 0 is not ready yet" in answer.json()["error"]["message"]
            answer = await http.post("/v1/messages", json={})
            assert answer.json()["error"]["type"] == "overloaded_error"
            assert "x-request-id" in answer.headers

            node = MockNode(engine.endpoint, 0, speaking(5, 6))
            running = asyncio.create_task(node.run())
            await engine.start(WAIT_SECONDS)
            # What tells that it is ready is a promise: the request that follows is served.
            assert (await http.get("/v1/models")).status_code == 200
            answer = await http.post("/v1/completions", json={"prompt": [1], "max_tokens": 2})
            assert answer.status_code == 200
            engine.fail("expert node 2 was killed")
            assert (await http.get("/v1/models")).status_code == 200
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_browser_is_told_and_comes_back_by_itself() -> None:
    async def main() -> None:
        async with loading() as (http, _):
            answer = await http.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
            assert answer.status_code == 503
            assert answer.headers["refresh"] == "1"
            assert "being loaded" in answer.text
            assert "'none'" in answer.headers["content-security-policy"]

    asyncio.run(main())


def test_a_page_from_elsewhere_may_read_that_it_loads() -> None:
    async def main() -> None:
        async with loading(ServingOptions(allowed_origins=(ORIGIN,))) as (http, _):
            answer = await http.get("/v1/models", headers={"Origin": ORIGIN})
            assert answer.status_code == 503
            assert answer.headers["access-control-allow-origin"] == ORIGIN

    asyncio.run(main())
