"""vLLM's API server with a mock engine in place of its engine core.

    serve_vllm_mock.py MODEL PORT TIMES STREAMS TOKENS

Everything that vLLM's server does is there: HTTP, its renderer and input processor, its output
processor with the detokeniser. Instead of the engine core there is a process that gives every
stream its tokens when they are due (`peers.staggered.Streams`) and sends them as vLLM's own
messages, in vLLM's own encoding. TIMES is a file of float64 [STREAMS, TOKENS].
"""

import asyncio
import multiprocessing as mp
import select
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import zmq
import zmq.asyncio
from vllm.entrypoints.launchers.api_server.entry import run_server
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

sys.path.append(str(Path(__file__).parents[2]))  # last: the benchmarks' names hide none of vLLM's
from peers.staggered import Streams

TOKEN = 70


def run_engine(endpoint: str, times: str, shape: tuple[int, int]) -> None:
    """Until the process is ended."""
    streams = Streams(np.memmap(times, np.float64, "r+", shape=shape))
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    sock.connect(endpoint)
    encoder = MsgpackEncoder()
    while True:
        while int(sock.get(zmq.EVENTS)) & zmq.POLLIN:
            kind, *rest = msgspec.msgpack.decode(sock.recv())
            streams.begin(*rest) if kind == "add" else streams.abort(*rest)
        for request, last in streams.due():
            reason = FinishReason.LENGTH if last else None
            output = EngineCoreOutput(request, [TOKEN], finish_reason=reason)
            sock.send_multipart(encoder.encode(EngineCoreOutputs(outputs=[output])))
        if not int(sock.get(zmq.EVENTS)) & zmq.POLLIN:
            select.select([int(sock.get(zmq.FD))], [], [], streams.patience())


class MockCore(EngineCoreClient):  # type: ignore[misc]  # vLLM has an environment of its own
    """What vLLM's `AsyncLLM` asks of its engine core."""

    engine_ranks_managed = (0,)

    def __init__(self, times: str, shape: tuple[int, int]) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        endpoint = f"ipc://{tempfile.mkdtemp()}/engine"
        self._socket = zmq.asyncio.Context.instance().socket(zmq.PAIR)
        self._socket.bind(endpoint)
        spawn = mp.get_context("spawn")
        self._engine = spawn.Process(target=run_engine, args=(endpoint, times, shape), daemon=True)
        self._engine.start()

    def shutdown(self, timeout: float | None = None) -> None:
        self._engine.kill()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        """There is none."""

    async def add_request_async(self, request: Any) -> None:
        stream, tokens = request.prompt_token_ids[0], request.sampling_params.max_tokens
        await self._say("add", request.request_id, stream, tokens)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request in request_ids:
            await self._say("abort", request)

    async def get_output_async(self) -> EngineCoreOutputs:
        return self._decoder.decode(await self._socket.recv_multipart(copy=False))

    async def _say(self, *words: object) -> None:
        await self._socket.send(msgspec.msgpack.encode(words))


def main() -> None:
    model, port, times, streams, tokens = sys.argv[1:]
    shape = int(streams), int(tokens)
    EngineCoreClient.make_async_mp_client = staticmethod(lambda **_: MockCore(times, shape))
    options = [
        *("--model", model, "--served-model-name", "mock", "--port", port),
        *("--host", "127.0.0.1", "--max-num-seqs", "1024", "--disable-uvicorn-access-log"),
    ]
    parser = make_arg_parser(FlexibleArgumentParser())
    args = parser.parse_args(options)
    validate_parsed_serve_args(args)
    asyncio.run(run_server(args))


if __name__ == "__main__":
    main()
