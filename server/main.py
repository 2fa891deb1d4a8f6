"""Serving the application on a socket until told to stop."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from dataclasses import dataclass, field

import uvicorn

from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.serving_options import ServingOptions
from megainfer.instruments.seldom import Seldom
from megainfer.sharing.rests import Rests
from megainfer.structured.checker import GrammarChecker
from megainfer.text.template_renderer import TemplateRenderer
from megainfer.text.tokenizer import Tokenizer
from server.app import create_app, guarded
from server.http.connections.acceptor import Acceptor
from server.http.connections.bounded_connection import BoundedConnection, TooManyConnections
from server.http.connections.connection_limits import ConnectionLimits
from server.http.envelope import Envelope
from server.openai.served_model import ServedModel
from server.operate.instance import Instance, assemble
from server.operate.metrics.log_line import TrafficLog

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15
FORCED_STOP_SECONDS = 2  # for uvicorn to cancel what was still running


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """shutdown_seconds: how long clients may take to read the end of their answers at stop."""

    model: ServedModel
    options: ServingOptions = field(default_factory=ServingOptions)
    shutdown_seconds: int = 5
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)


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
    instance: Instance | None = None,
) -> None:
    """Serve on a bound socket until `stop` is set, then end in bounded time.

    Requests in flight end with an error, or an error event if they stream. The engine is failed,
    but closing it is the caller's business. instance: what is known of it beside the engine.
    """
    known = instance or assemble(engine, config.model, config.options)
    others = known.occupancy.others
    checker = _grammar_checker(config.model, tokenizer, Rests(others))
    renderer = None if tokenizer is None else TemplateRenderer(tokenizer, rests=Rests(others))
    if renderer is not None and config.model.folder is not None:
        await renderer.prepare()  # so that no client waits for that
    app = create_app(engine, tokenizer, config.model, known, checker, renderer)
    server = _Server(_uvicorn_config(guarded(app, known), config))
    serving = asyncio.create_task(server.serve(sockets=[]), name="http-server")
    acceptor = _acceptor(sock, server, config, known)
    acceptor.start()
    stopping = asyncio.create_task(stop.wait(), name="http-server-stop")
    logging_traffic = asyncio.create_task(_log_traffic(known), name="traffic-log")
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        acceptor.close()
        sock.close()
        engine.fail("the server is shutting down")
        await _join(serving, config.shutdown_seconds + FORCED_STOP_SECONDS)
    finally:
        for task in (stopping, serving, logging_traffic):
            task.cancel()
        await asyncio.gather(stopping, serving, logging_traffic, return_exceptions=True)
        if checker is not None:
            await checker.close()
        if renderer is not None:
            await renderer.close()
        if known.spans is not None:
            known.spans.close()


def _grammar_checker(
    model: ServedModel, tokenizer: Tokenizer | None, rests: Rests
) -> GrammarChecker | None:
    if model.folder is None or tokenizer is None:
        return None
    return GrammarChecker(model.folder, model.vocab_size, model.defaults.eos_token_ids, rests)


async def _log_traffic(instance: Instance) -> None:
    if instance.options.log_seconds > 0:
        log_line = TrafficLog(instance.counted.requests, instance.board)
        await log_line.run(instance.options.log_seconds)


async def _join(serving: asyncio.Task[None], seconds: float) -> None:
    """Wait for the server's end, and raise what ended it if that wasn't `stop`."""
    try:
        await asyncio.wait_for(serving, seconds)
    except TimeoutError:
        log.warning("the HTTP server didn't end within %g s and was cancelled", seconds)


def _acceptor(
    sock: socket.socket, server: _Server, config: ServerConfig, known: Instance
) -> Acceptor:
    """Makes connections as uvicorn's own server would, which isn't given the socket."""
    refusing = TooManyConnections(config.connections)
    full = Envelope(refusing, known.counted.statuses, config.options.access_log)

    def make(too_many: bool) -> BoundedConnection:
        answers = full if too_many else None
        return BoundedConnection(
            server.config, server.server_state, {}, limits=config.connections, answers=answers
        )

    server.config.load()
    logging.getLogger("uvicorn.error").addFilter(Seldom())
    return Acceptor(sock, config.connections, make, server.config.ssl)


def _uvicorn_config(app: object, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn and starlette type an ASGI application apart
        http=BoundedConnection,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=config.shutdown_seconds,
        ssl_certfile=config.options.certificate,
        ssl_keyfile=config.options.private_key,
    )
