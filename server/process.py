"""The API server's process: the application, the engine client, and the link to the supervisor."""

import asyncio
import socket
import time

from megainfer.control import ParentLink
from megainfer.engine_client import EngineClient
from megainfer.errors import NodeDied
from megainfer.generation_config import GenerationDefaults
from megainfer.messages import NodeDown, Ready, Role, Stop
from megainfer.plan import Plan
from megainfer.tokenizer import load_tokenizer
from server.main import ServerConfig, serve
from server.served_model import ServedModel

LOADING_TIMEOUT_SECONDS = 3600.0
"""A supervisor that gives up on loading, or dies, ends this process much sooner."""


def run_server(link: ParentLink, plan: Plan, sock: socket.socket, names: list[str]) -> None:
    """Everything that the API server's process does after the fork."""
    asyncio.run(_Server(link, plan).run(sock, names))


class _Server:
    def __init__(self, link: ParentLink, plan: Plan) -> None:
        self._link = link
        self._plan = plan
        self._stop = asyncio.Event()
        self._engine = EngineClient(plan.endpoint, plan.num_attention, plan.spec.vocab_size)

    async def run(self, sock: socket.socket, names: list[str]) -> None:
        """Answer at once, if only with 503 until the nodes are ready; until told to stop."""
        plan = self._plan
        self._engine.bind()
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._hear)
        model = ServedModel(
            names=tuple(names),
            max_model_len=plan.max_model_len,
            vocab_size=plan.spec.vocab_size,
            created=int(time.time()),
            folder=plan.folder,
            defaults=GenerationDefaults.load(plan.folder),
        )
        tokenizer = load_tokenizer(plan.folder)
        ready = asyncio.create_task(self._tell_when_ready())
        try:
            await serve(sock, ServerConfig(model), self._engine, tokenizer, self._stop)
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)
            await self._engine.close()

    async def _tell_when_ready(self) -> None:
        await self._engine.start(LOADING_TIMEOUT_SECONDS)
        self._link.send(Ready())

    def _hear(self) -> None:
        try:
            while (message := self._link.receive(timeout=0)) is not None:
                match message:
                    case NodeDown():
                        self._mourn(message)
                    case Stop():
                        self._stop.set()
        except NodeDied:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._engine.fail("the supervisor has died")
            self._stop.set()

    def _mourn(self, down: NodeDown) -> None:
        """An attention node takes its own requests with it; experts serve everybody."""
        text = f"{down.role} node {down.node} died: {down.message}"
        self._engine.fail(text, down.node if down.role is Role.ATTENTION else None)
