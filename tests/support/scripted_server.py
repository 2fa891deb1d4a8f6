"""What tests of the front end need: a small tokenizer, an attention node that plays a script, and
a server on an ephemeral port with both behind it."""

import asyncio
import json
import queue
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import zmq
import zmq.asyncio
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.frontend.node_socket import new_endpoint
from megainfer.frontend.serving_options import ServingOptions
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.messages.message import encode
from megainfer.messages.requests import (
    Abort,
    FinishReason,
    NodeReady,
    RequestFailed,
    Submit,
    TokenEvent,
    Tokens,
    each_of,
    node_identity,
    to_node_decoder,
)
from megainfer.sharing.budgets import client_shares
from megainfer.text.tokenizer import Tokenizer as ModelTokenizer
from server.http.connections.connection_limits import ConnectionLimits
from server.main import ServerConfig, serve
from server.openai.served_model import ServedModel
from server.operate.instance import assemble

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Hello world, how are you today?",
    "Die Würde des Menschen ist unantastbar.",
    "人生は短い、芸術は長い。😀🎉",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 256
WAIT_SECONDS = 10.0  # how long a test waits for what must happen; it never waits this long

Script = Callable[[Submit], AsyncIterator[TokenEvent | RequestFailed]]
Result = TypeVar("Result")


def byte_level_backend() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


def sentencepiece_backend() -> Tokenizer:
    """A vocabulary like Llama's: words with a leading ▁, and all bytes to fall back on."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefgh", "▁a", "▁b", "▁ab", "cd", "▁cd"]
    merges = [("▁", "a"), ("▁", "b"), ("▁a", "b"), ("c", "d"), ("▁", "cd")]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    return backend


def write_tokenizer(folder: Path, backend: Tokenizer | None = None, **config: Any) -> Path:
    (backend or byte_level_backend()).save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE, **config}
    given = {name: value for name, value in settings.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    return folder


class MockNode:
    """Speaks the ZeroMQ side of an attention node; what it answers is `script`'s business.

    heard: every message from the front end, for tests on any thread.
    """

    def __init__(self, endpoint: str, node: int, script: Script, incarnation: int = 0) -> None:
        self.script, self.context = script, CONTEXT
        self.heard: queue.Queue[Any] = queue.Queue()
        self._endpoint, self._node, self._incarnation = endpoint, node, incarnation
        self._playing: dict[str, asyncio.Task[None]] = {}

    def start(self) -> "MockNode":
        """Run it as a task."""
        self._life = asyncio.create_task(self.run())
        return self

    async def stop(self) -> None:
        """As a kill does: nothing more is said, and its socket is closed."""
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)

    async def run(self) -> None:
        context = zmq.asyncio.Context()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, node_identity(self._node, self._incarnation))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(self._endpoint)
        ready = NodeReady(self._node, self.context, max_num_seqs=8, incarnation=self._incarnation)
        try:
            await self.say(ready)
            while True:
                self._hear(to_node_decoder.decode(await self._socket.recv()))
        finally:
            for playing in self._playing.values():
                playing.cancel()
            context.destroy(linger=0)

    def _hear(self, message: Any) -> None:
        if isinstance(message, Submit):
            for submit in each_of(message):
                self.heard.put(submit)
                self._playing[submit.request_id] = asyncio.create_task(self._play(submit))
            return
        self.heard.put(message)
        if isinstance(message, Abort):
            self._playing[message.request_id].cancel()

    async def _play(self, submit: Submit) -> None:
        async for item in self.script(submit):
            if isinstance(item, TokenEvent):
                await self.say(Tokens(node=self._node, events=[item]))
            else:
                await self.say(item)

    async def say(self, message: Any) -> None:
        await self._socket.send(encode(message))

    def expect(self, kind: type[Result]) -> Result:
        """The next message of this kind that the front end sends."""
        while not isinstance(message := self.heard.get(timeout=WAIT_SECONDS), kind):
            pass
        return message


def speaking(*ids: int, finish: FinishReason = FinishReason.STOP, cached: int = 0) -> Script:
    """A script: these tokens one by one (as many as asked for), the last one ending it."""

    async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
        spoken = ids[: submit.max_tokens]
        for position, token in enumerate(spoken):
            last = position == len(spoken) - 1
            reason = finish if len(spoken) == len(ids) else FinishReason.LENGTH
            yield TokenEvent(
                submit.request_id,
                [token],
                reason if last else None,
                cached if position == 0 else 0,
            )

    return script


def counting(until: int) -> Script:
    """A script: 0, 1, 2, … from where the request's output ends, up to `until` tokens in all; then
    silence, unless these are as many as it may have."""

    async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
        for token in range(len(submit.output), min(until, submit.max_tokens)):
            last = token + 1 == submit.max_tokens
            yield TokenEvent(submit.request_id, [token], FinishReason.LENGTH if last else None)

    return script


def endless(token: int) -> Script:
    """A script: one token, then silence."""

    async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(submit.request_id, [token])

    return script


async def silent(submit: Submit) -> AsyncIterator[TokenEvent]:
    """A script without a word."""
    return
    yield


@asynccontextmanager
async def engine_with(
    *scripts: Script, vocab_size: int = 1000, context: int = CONTEXT, **options: Any
) -> AsyncIterator[tuple[EngineClient, list[MockNode]]]:
    """A started engine client over one mock node a script. Nodes that are added to the list are
    stopped at the end as well."""
    engine = EngineClient(new_endpoint(), len(scripts), vocab_size, **options)
    nodes = [MockNode(engine.endpoint, index, script) for index, script in enumerate(scripts)]
    for node in nodes:
        node.context = context
        node.start()
    try:
        await engine.start(WAIT_SECONDS)
        yield engine, nodes
    finally:
        for node in nodes:
            await node.stop()
        await engine.close()


class RunningServer:
    """The real server over the real engine client over a mock node, on a thread of its own."""

    def __init__(
        self,
        tokenizer: ModelTokenizer | None,
        defaults: GenerationDefaults | None = None,
        vocab_size: int = 1000,
        options: ServingOptions | None = None,
        shows_tokenizer: bool = False,
        folder: Path | None = None,
        connections: ConnectionLimits | None = None,
        syntax: SyntaxOptions | None = None,
        context: int = CONTEXT,
        names: tuple[str, ...] = ("tiny", "org/alias"),
    ) -> None:
        """folder: of the tokenizer's files, for structured output."""
        self._connections = connections or ConnectionLimits()
        self._tokenizer = tokenizer
        self._options = options or ServingOptions()
        self._model = ServedModel(
            names=names,
            max_model_len=context,
            vocab_size=vocab_size,
            created=1_700_000_000,
            folder=folder,
            syntax=syntax or SyntaxOptions(),
            defaults=defaults or GenerationDefaults(),
            shows_tokenizer=shows_tokenizer,
        )
        self._ready: queue.Queue[None] = queue.Queue()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self) -> "RunningServer":
        self._thread.start()
        self._ready.get(timeout=WAIT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def thread(self) -> int | None:
        """Which its event loop runs on."""
        return self._thread.ident

    @property
    def node(self) -> MockNode:
        return self.nodes[0]

    def stop(self) -> None:
        if self._thread.is_alive():
            self.call(self._stop.set)
            self._thread.join(timeout=WAIT_SECONDS)
        assert not self._thread.is_alive(), "the server did not end in bounded time"

    def call(self, action: Callable[..., Any], *args: Any) -> None:
        """Do something on the server's event loop."""
        self._loop.call_soon_threadsafe(action, *args)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            vocab_size = self._model.vocab_size
            limits, budgets = self._options.limits, self._options.budgets
            size = self._model.max_model_len
            shares = client_shares(budgets.request_memory, budgets.client_share)
            async with engine_with(
                speaking(1),
                vocab_size=vocab_size,
                context=size,
                queue_limits=limits,
                shares=shares,
            ) as (self.engine, self.nodes):
                self.instance = assemble(self.engine, self._model, self._options)
                self._ready.put(None)
                config = ServerConfig(
                    self._model, self._options, shutdown_seconds=1, connections=self._connections
                )
                await serve(sock, config, self.engine, self._tokenizer, self._stop, self.instance)


def raw_request(server: RunningServer, body: str) -> socket.socket:
    """A connection on which this completion was asked for, and no answer read."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=WAIT_SECONDS)
    connection.sendall(
        (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
    )
    return connection
