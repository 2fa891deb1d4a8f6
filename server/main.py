"""Serving the application on a socket until told to stop."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from dataclasses import dataclass

import uvicorn

from megainfer.engine_client import EngineClient
from megainfer.structured.checker import GrammarChecker
from megainfer.tokenizer import Tokenizer
from server.app import create_app
from server.served_model import ServedModel

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15
FORCED_STOP_SECONDS = 2  # for uvicorn to cancel what was still running


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """shutdown_seconds: how long clients may take to read the end of their answers at stop."""

    model: ServedModel
    shutdown_seconds: int = 5
    access_log: bool = False


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the supervisor decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    sock: socket.socket,
    config: ServerConfig,
    engine: EngineClient,
    tokenizer: Tokenizer | None,
    stop: asyncio.Event,
) -> None:
    """Serve on a bound socket until `stop` is set, then end in bounded time.

    Requests in flight end with an error, or an error event if they stream. The engine is failed,
    but closing it is the caller's business.
    """
    checker = _grammar_checker(config.model, tokenizer)
    app = create_app(engine, tokenizer, config.model, checker)
    server = _Server(_uvicorn_config(app, config))
    serving = asyncio.create_task(server.serve(sockets=[sock]), name="http-server")
    stopping = asyncio.create_task(stop.wait(), name="http-server-stop")
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        engine.fail("the server is shutting down")
        await _join(serving, config.shutdown_seconds + FORCED_STOP_SECONDS)
    finally:
        stopping.cancel()
        serving.cancel()
        await asyncio.gather(stopping, serving, return_exceptions=True)
        if checker is not None:
            await checker.close()


def _grammar_checker(model: ServedModel, tokenizer: Tokenizer | None) -> GrammarChecker | None:
    if model.folder is None or tokenizer is None:
        return None
    return GrammarChecker(model.folder, model.vocab_size, model.defaults.eos_token_ids)


async def _join(serving: asyncio.Task[None], seconds: float) -> None:
    """Wait for the server's end, and raise what ended it if that wasn't `stop`."""
    try:
        await asyncio.wait_for(serving, seconds)
    except TimeoutError:
        log.warning("the HTTP server didn't end within %g s and was cancelled", seconds)


def _uvicorn_config(app: object, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn and starlette type an ASGI application apart
        log_config=None,
        log_level="warning",
        access_log=config.access_log,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=config.shutdown_seconds,
    )
