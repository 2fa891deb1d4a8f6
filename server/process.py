"""The API server's process: the application, the engine client, and the link to the supervisor."""

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.errors import MegaInferError, NodeDied
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.queue_limits import QueueLimits
from megainfer.frontend.serving_options import ServingOptions
from megainfer.frontend.shared_loads import SharedLoads
from megainfer.launch.heartbeat import keep_due
from megainfer.launch.station import Station
from megainfer.messages.from_child import Drained, Opened, Ready, Spans, Stats
from megainfer.messages.message import Message
from megainfer.messages.pausing import PauseSet
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import (
    Chronicle,
    Drain,
    Enter,
    NodeDown,
    NodeGone,
    Reload,
    Resized,
    Started,
    Stop,
    WeightsUpdated,
)
from megainfer.model_folder.deployment import Deployment
from megainfer.sharing.budgets import client_shares
from server.http.connections.connection_limits import raise_file_limit
from server.http.request_id import name_requests
from server.main import ServerConfig, serve
from server.openai.served_model import ServedModel
from server.operate.instance import assemble, surroundings_of

LOADING_TIMEOUT_SECONDS = 3600.0
"""A supervisor that gives up on loading, or dies, ends this process much sooner."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSeat:
    """Which of the API servers this is. sockets: on which each of them listens. loads: what all of
    them have in flight."""

    server: int
    sockets: Sequence[socket.socket]
    loads: SharedLoads


def run_server(
    station: Station, deployment: Deployment, options: ServingOptions, seat: ServerSeat
) -> None:
    """Everything that an API server's process does after the fork."""
    name_requests(logging.getLogger())
    for other in {*range(len(seat.sockets))} - {seat.server}:
        seat.sockets[other].close()
    asyncio.run(_Server(station, deployment, options, seat).run(seat.sockets[seat.server]))


class _Server:
    def __init__(
        self, station: Station, deployment: Deployment, options: ServingOptions, seat: ServerSeat
    ) -> None:
        plan = deployment.plan
        self._link = station.link
        self._nodes = plan.num_attention, plan.num_expert
        self._page = station.page
        self._tokenizer = deployment.tokenizer
        self._options = options
        self._stop = asyncio.Event()
        self._engine = EngineClient(
            plan.front_endpoint(seat.server, station.incarnation),
            plan.num_attention,
            plan.spec.vocab_size,
            queue_limits=options.limits,
            recovery_seconds=options.recovery_seconds,
            report=self._report,
            load=seat.loads.of(seat.server),
            shares=client_shares(
                options.budgets.request_memory, options.budgets.client_share, options.api_servers
            ),
            routing_bytes=plan.routing_bytes,
        )
        self._model = ServedModel(
            names=options.names,
            max_model_len=plan.max_model_len,
            vocab_size=plan.spec.vocab_size,
            created=int(time.time()),
            folder=plan.folder,
            syntax=options.syntax,
            shows_tokenizer=options.shows_tokenizer,
            defaults=plan.generation,
            routing_bytes=plan.routing_bytes,
            logprobs_mode=options.logprobs_mode,
        )
        around = surroundings_of(plan, options, self._ask, seat.server)
        self._instance = assemble(self._engine, self._model, options, around)
        self._draining: asyncio.Task[None] | None = None
        self._broke: str | None = None

    async def run(self, sock: socket.socket) -> None:
        """Answer at once, if only with 503 until the nodes are ready; until told to stop.

        Raises MegaInferError when it ended by itself, since it could never serve again; another
        process in its place can.
        """
        self._engine.bind()
        self._link.send(Opened())
        siblings = self._instance.exposition.siblings
        await siblings.open()
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._listen)
        ready = asyncio.create_task(self._tell_when_ready())
        watching = asyncio.create_task(self._end_when_broken(), name="engine-watch")
        turning = asyncio.create_task(keep_due(self._page), name="heartbeat")
        config = ServerConfig(
            self._model, self._options, connections=raise_file_limit(self._options.of_address)
        )
        try:
            await serve(sock, config, self._engine, self._tokenizer, self._stop, self._instance)
        finally:
            background = [
                task for task in (ready, watching, turning, self._draining) if task is not None
            ]
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await siblings.close()
            await self._instance.rollouts.leave()
            await self._engine.close()
        if self._broke is not None:
            raise MegaInferError(self._broke)

    async def _end_when_broken(self) -> None:
        self._broke = f"it can't hear from the nodes any more: {await self._engine.failure()}"
        self._stop.set()

    async def _tell_when_ready(self) -> None:
        try:
            await self._engine.start(LOADING_TIMEOUT_SECONDS)
        except NodeDied as error:
            self._broke = self._broke or f"it can't serve: {error}"
            self._stop.set()
            return
        self._instance.board.watch()
        # All that was loaded stays: the collector need not look at it again with every request.
        gc.collect()
        gc.freeze()
        self._link.send(Ready())

    async def _drain(self) -> None:
        await self._instance.occupancy.drain()
        self._link.send(Drained())

    def _report(self, down: NodeDown) -> None:
        self._ask(down)

    def _ask(self, message: Message) -> bool:
        """A supervisor that hangs must not hold up the event loop: then it doesn't hear this.
        Whether it does."""
        heard = self._link.offer(message)
        if not heard:
            log.warning("the supervisor does not listen; it was not told %s", message)
        return heard

    def _reload(self, told: Reload) -> None:
        self._instance.keys.change(told.api_keys, told.admin_keys)
        limits = QueueLimits(told.queued, told.queue_seconds, told.total_seconds)
        self._engine.change_limits(limits, told.recovery_seconds)

    def _listen(self) -> None:
        try:
            while (message := self._link.receive(timeout=0)) is not None:
                self._hear(message)
        except NodeDied:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._engine.fail("the supervisor has died")
            self._stop.set()
        except Exception as error:  # what it missed of who serves nobody would tell it again
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            log.exception("listening to the supervisor failed")
            self._broke = f"it can't hear from the supervisor any more: {error!r}"
            self._engine.fail(self._broke)
            self._stop.set()

    def _hear(self, message: ToChild) -> None:
        match message:
            case Started():
                self._instance.counted.startup.update(message.seconds)
                self._instance.counted.expectation.learn(message.profile, *self._nodes)
            case Stats():
                self._instance.board.hear(message)
            case Spans():
                self._instance.tracer.hear(message)
            case WeightsUpdated() | PauseSet():
                self._instance.rollouts.hear(message)
            case Enter(membership=membership):
                self._instance.rollouts.version = membership.weights.name
                self._instance.board.enter(membership)
                self._engine.enter(membership)
            case NodeDown():
                self._instance.board.lose(message.role, message.node)
                self._engine.lose(message)
            case NodeGone():
                self._instance.board.forget(message.role, message.node)
                self._engine.forget(message)
            case Chronicle():
                self._instance.board.chronicle = message
            case Reload():
                self._reload(message)
            case Resized():
                self._instance.changes.hear(message)
            case Drain():
                self._draining = asyncio.create_task(self._drain(), name="drain")
            case Stop():
                self._stop.set()
