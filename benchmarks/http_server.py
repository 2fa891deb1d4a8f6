"""What the API server adds to every token, and how many requests it takes a second.

    python benchmarks/http_server.py
    python benchmarks/http_server.py --streams 64 256 --seconds 10 --client bench --json out.json
    python benchmarks/http_server.py --streams 64 --profile server.prof
    python benchmarks/http_server.py --peers ~/peers  # beside vLLM's server; see prepare_peers.py

The real API server runs in a process of its own. Behind it is a mock engine, another process, which
speaks an attention node's side of ZeroMQ: it gives every stream 20 tokens a second, each stream at
its own moments. In front is a client. All read one clock (CLOCK_MONOTONIC). Columns:

    server    ours, or vLLM's over a mock of its engine core (see peers/programs/serve_vllm_mock.py)
    streams   answers that are streamed at the same time
    added     ms from the mock's sending a token to the client's having it: p50, p99, the most
    itl       ms that a stream's interval between two tokens is off its 50 ms: p99
    cpu       of the server's process: microseconds a token, and its share of a core
    req/s     requests of one token each, as many at a time as there are streams

The client `lean` only counts events in what it reads; `bench` is the one of `bench serve`,
which parses them. Tokens of the first second, when connections are made, don't count.
"""

import argparse
import asyncio
import cProfile
import gc
import json
import multiprocessing as mp
import os
import select
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import zmq
from checkpoints import ensure_checkpoint, with_tokenizer
from peers import vllm
from peers.entrants import PROGRAMS, free_port
from peers.environments import python_of
from peers.process_group import ProcessGroup
from peers.staggered import RATE, Streams
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from megainfer.bench.client import Client, Target
from megainfer.bench.load import run_load
from megainfer.bench.metrics import token_times
from megainfer.bench.sample import Sample
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.node_socket import new_endpoint
from megainfer.messages.message import encode
from megainfer.messages.requests import (
    Abort,
    FinishReason,
    NodeReady,
    Submit,
    TokenEvent,
    Tokens,
    node_identity,
    to_node_decoder,
)
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from server.main import ServerConfig, serve
from server.openai.served_model import ServedModel

CONTEXT = 1 << 20
TOKEN = 97
VOCABULARY = 1 << 16  # a prompt is a stream's number
SETTLING_SECONDS = 1.0
READY_SECONDS = 120.0
END_SECONDS = 30.0
SPAWN = mp.get_context("spawn")


@dataclass(frozen=True)
class Measured:
    """Times in milliseconds but for microseconds where it says so."""

    server: str
    client: str
    streams: int
    tokens: int
    added_p50: float
    added_p99: float
    added_max: float
    itl_off_p99: float
    server_us_a_token: float
    server_load: float
    requests_per_second: float


# --- the mock engine ----------------------------------------------------------------------------


class MockEngine:
    """An attention node's side of ZeroMQ. A prompt is one token, the stream's number."""

    def __init__(self, endpoint: str, sent: np.ndarray) -> None:
        self._streams = Streams(sent)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, node_identity(0))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def run(self) -> None:
        """Until the process is ended."""
        self._socket.send(encode(NodeReady(node=0, max_model_len=CONTEXT, max_num_seqs=1024)))
        while True:
            while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                self._hear(to_node_decoder.decode(self._socket.recv()))
            for request, last in self._streams.due():
                event = TokenEvent(request, [TOKEN], FinishReason.LENGTH if last else None)
                self._socket.send(encode(Tokens(node=0, events=[event])))
            # Whole milliseconds, as ZeroMQ's own poll has them, would make it spin all the time.
            if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                select.select([int(self._socket.get(zmq.FD))], [], [], self._streams.patience())

    def _hear(self, message: object) -> None:
        if isinstance(message, Abort):
            self._streams.abort(message.request_id)
        elif isinstance(message, Submit):
            self._streams.begin(message.request_id, message.prompt[0], message.max_tokens)


def run_engine(endpoint: str, memory: Path, shape: tuple[int, int]) -> None:
    MockEngine(endpoint, np.memmap(memory, np.float64, "r+", shape=shape)).run()


# --- the server ---------------------------------------------------------------------------------


def run_server(
    sock: socket.socket, endpoint: str, stop: "mp.synchronize.Event", profile: str | None
) -> None:
    if profile is None:
        asyncio.run(serve_until(sock, endpoint, stop))
        return
    with cProfile.Profile() as profiler:
        asyncio.run(serve_until(sock, endpoint, stop))
    profiler.dump_stats(profile)


async def serve_until(sock: socket.socket, endpoint: str, stop: "mp.synchronize.Event") -> None:
    engine = EngineClient(endpoint, 1, VOCABULARY, max_outstanding=4096)
    model = ServedModel(("mock",), CONTEXT, VOCABULARY, created=0)
    engine.bind()
    starting = asyncio.create_task(start_engine(engine))
    ended = asyncio.Event()
    waiting = asyncio.create_task(asyncio.to_thread(stop.wait))
    waiting.add_done_callback(lambda _: ended.set())
    try:
        await serve(sock, ServerConfig(model), engine, byte_tokenizer(), ended)
    finally:
        await starting
        await engine.close()


async def start_engine(engine: EngineClient) -> None:
    """As the API server's process does."""
    await engine.start(READY_SECONDS)
    gc.collect()
    gc.freeze()


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(FastBackend(backend), {})


@contextmanager
def running_ours(
    profile: str | None, memory: Path, shape: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """The port and the process id of a server with a mock engine behind it."""
    endpoint, stop = new_endpoint(), SPAWN.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as sock:
        server = SPAWN.Process(target=run_server, args=(sock, endpoint, stop, profile))
        engine = SPAWN.Process(target=run_engine, args=(endpoint, memory, shape))
        server.start()
        engine.start()
        try:
            assert server.pid is not None
            yield sock.getsockname()[1], server.pid
        finally:
            stop.set()
            server.join(END_SECONDS)
            for process in (server, engine):
                process.kill()
                process.join()


@contextmanager
def running_vllm(
    peers: Path, model: Path, command: Sequence[str], memory: Path, shape: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """vLLM's server over a mock of its engine core; its port and process id."""
    port = free_port()
    order = (PROGRAMS / "serve_vllm_mock.py", model, port, memory, *shape)
    group = ProcessGroup([*command, *map(str, order)], vllm.variables(peers, [0], compiled=False))
    try:
        yield port, group.process.pid
    finally:
        group.process.terminate()
        group.end()


Start = Callable[[Path, tuple[int, int]], AbstractContextManager[tuple[int, int]]]
"""Of a server whose mock engine notes its times in this file of this shape."""


def servers(peers: Path | None, profile: str | None) -> dict[str, Start]:
    found: dict[str, Start] = {"megainfer": partial(running_ours, profile)}
    if peers is not None:
        models = peers / "models"
        model = with_tokenizer(ensure_checkpoint("0.17B", models), models)
        found["vllm"] = partial(running_vllm, peers, model, [str(python_of(peers, "vllm"))])
    return found


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- the clients --------------------------------------------------------------------------------


class LeanStream(asyncio.Protocol):
    """One request on a connection of its own; notes when each event came."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.times: list[float] = []
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.times += [time.monotonic()] * data.count(b"data: {")
        if b"data: [DONE]" in data:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def lean_streams(port: int, streams: int, tokens: int) -> list[list[float]]:
    loop = asyncio.get_running_loop()
    opened = []
    for stream in range(streams):
        lean = partial(LeanStream, http_request(stream, tokens))
        _, protocol = await loop.create_connection(lean, "127.0.0.1", port)
        opened.append(protocol)
    await asyncio.gather(*(protocol.ended for protocol in opened))
    return [protocol.times for protocol in opened]


def http_request(stream: int, tokens: int) -> bytes:
    body = json.dumps(
        {"model": "mock", "prompt": [stream], "max_tokens": tokens, "stream": True}
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def target(port: int) -> Target:
    return Target(f"http://127.0.0.1:{port}/v1/completions", "mock")


async def bench_streams(port: int, streams: int, tokens: int) -> list[list[float]]:
    samples = [Sample([stream], 1, tokens) for stream in range(streams)]
    async with Client(target(port)) as client:
        result = await run_load(client.send, samples, [0.0] * streams, None, lambda _: None)
    return [token_times(outcome) for outcome in result.outcomes]


async def requests_per_second(port: int, at_a_time: int, count: int) -> float:
    samples = [Sample([0], 1, 1)] * count
    async with Client(target(port)) as client:
        await run_load(
            client.send, samples[:at_a_time], [0.0] * at_a_time, at_a_time, lambda _: None
        )
        result = await run_load(client.send, samples, [0.0] * count, at_a_time, lambda _: None)
    assert all(outcome.ok for outcome in result.outcomes), result.outcomes[0].error
    return count / result.seconds


CLIENTS = {"lean": lean_streams, "bench": bench_streams}


# --- measuring ----------------------------------------------------------------------------------


def measure(
    name: str, start: Start, streams: int, client: str, seconds: float, requests: int
) -> Measured:
    tokens = int(RATE * (seconds + SETTLING_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        memory = Path(folder) / "sent"
        sent = np.memmap(memory, np.float64, "w+", shape=(streams, tokens))
        with start(memory, sent.shape) as (port, server):
            asyncio.run(ready(port))
            before, begin = cpu_seconds(server), time.monotonic()
            times = asyncio.run(CLIENTS[client](port, streams, tokens))
            spent, took = cpu_seconds(server) - before, time.monotonic() - begin
            rate = asyncio.run(requests_per_second(port, streams, requests))
        return measured((name, client), np.array(sent), times, (spent, took, rate))


async def ready(port: int) -> None:
    """Until the mock engine's first answer."""
    async with Client(target(port)) as client, asyncio.timeout(READY_SECONDS):
        while not (await client.send(Sample([0], 1, 1))).ok:
            await asyncio.sleep(0.05)


def measured(
    who: tuple[str, str],
    sent: np.ndarray,
    times: Sequence[Sequence[float]],
    totals: tuple[float, float, float],
) -> Measured:
    if any(len(own) != sent.shape[1] for own in times):
        raise SystemExit(f"tokens are missing: {sorted({len(own) for own in times})}")
    spent, took, rate = totals
    got = np.array(times)
    late = sent >= sent.min() + SETTLING_SECONDS
    added = 1e3 * (got - sent)[late]
    off = 1e3 * np.abs(np.diff(got, axis=1) - 1 / RATE)[late[:, 1:]]
    return Measured(
        server=who[0],
        client=who[1],
        streams=len(sent),
        tokens=int(late.sum()),
        added_p50=float(np.percentile(added, 50)),
        added_p99=float(np.percentile(added, 99)),
        added_max=float(added.max()),
        itl_off_p99=float(np.percentile(off, 99)),
        server_us_a_token=1e6 * spent / sent.size,
        server_load=spent / took,
        requests_per_second=rate,
    )


def show(rows: Sequence[Measured]) -> None:
    table = Table(
        "server",
        "client",
        "streams",
        "tokens",
        "added p50",
        "p99",
        "max",
        "itl p99",
        "cpu",
        "load",
        "req/s",
    )
    for row in rows:
        table.add_row(
            row.server,
            row.client,
            str(row.streams),
            str(row.tokens),
            f"{row.added_p50:.2f} ms",
            f"{row.added_p99:.2f} ms",
            f"{row.added_max:.1f} ms",
            f"{row.itl_off_p99:.2f} ms",
            f"{row.server_us_a_token:.0f} us",
            f"{row.server_load:.0%}",
            f"{row.requests_per_second:.0f}",
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seconds", type=float, default=10.0, help="that count, of each stream")
    parser.add_argument("--requests", type=int, default=2000, help="of one token, for req/s")
    parser.add_argument("--client", nargs="+", choices=CLIENTS, default=["lean"])
    parser.add_argument("--profile", metavar="FILE", help="cProfile's of the server; it is slower")
    parser.add_argument("--peers", type=Path, help="folder of prepare_peers.py; with vLLM's server")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    args = parser.parse_args()
    rows = [
        measure(name, start, streams, client, args.seconds, args.requests)
        for client in args.client
        for streams in args.streams
        for name, start in servers(args.peers, args.profile).items()
    ]
    show(rows)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
