"""The front end's side of the conversation with the attention nodes.

Each node connects and says NodeReady. Requests go down, tokens come up. What a node that died had
goes on at others, from the tokens that came of it; while nobody can go on with it, it waits, for a
bounded time. Both the API server and the offline LLM stand on this, so nothing of HTTP is in here.
Everything runs on one asyncio event loop.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from time import monotonic

import msgspec

from megainfer.errors import (
    MegaInferError,
    NodeDied,
    Overloaded,
    ProtocolError,
    RequestError,
    RequestTimeout,
    cited,
)
from megainfer.frontend.assignments import Assignments
from megainfer.frontend.attendance import Attendance
from megainfer.frontend.condition import Condition, Phase
from megainfer.frontend.engine_observer import EngineObserver
from megainfer.frontend.node_socket import At, NodeSocket
from megainfer.frontend.outstanding import Outstanding
from megainfer.frontend.queue_limits import QueueLimits
from megainfer.frontend.recovery import RECOVERY_SECONDS, Recovery
from megainfer.frontend.request_limits import RequestLimits
from megainfer.frontend.sequence_request import SequenceRequest, submit_message
from megainfer.frontend.shared_loads import FrontEndLoad, SharedLoads
from megainfer.frontend.token_stream import TokenStream
from megainfer.messages.requests import (
    FinishReason,
    FromNode,
    NodeReady,
    RequestFailed,
    Reset,
    Submit,
    TokenEvent,
    Tokens,
)
from megainfer.messages.to_child import NodeDown, NodeGone
from megainfer.sampling import MAX_PRIORITY, SamplingParams, check_integer
from megainfer.sharing.budgets import MAX_OUTSTANDING, MEMORY, SEQUENCES
from megainfer.sharing.pauses import Pauses
from megainfer.sharing.shares import Shares
from megainfer.topology import Membership

log = logging.getLogger(__name__)


class EngineClient:
    """Submits sequences to the attention nodes and hands out their tokens.

    `vocab_size` is the model's. `start`, then `submit` or `generate`, at last `close`. Whoever
    wants to know of every sequence becomes its `observer`. report: is told of a node that can't be
    used, though nobody has said that it died. load: what other front ends of the instance have in
    flight; the limits are for all together.
    """

    def __init__(
        self,
        endpoint: str,
        num_nodes: int,
        vocab_size: int,
        max_outstanding: int = MAX_OUTSTANDING,
        queue_limits: QueueLimits | None = None,
        recovery_seconds: float = RECOVERY_SECONDS,
        report: Callable[[NodeDown], None] = lambda down: None,
        load: FrontEndLoad | None = None,
        shares: Shares | None = None,
        routing_bytes: int = 0,
    ) -> None:
        """shares: of SEQUENCES and MEMORY; without, only the former are bounded. routing_bytes:
        see `RequestLimits`."""
        self.endpoint = endpoint
        self.num_nodes = num_nodes
        self.last_token_at: float | None = None  # seconds of the monotonic clock; of any request
        self.recovery = Recovery(recovery_seconds, self._give_up_waiting)
        self.attendance = Attendance(num_nodes)
        self._queue_limits = queue_limits or QueueLimits()
        self._vocab_size, self._routing_bytes = vocab_size, routing_bytes
        self._max_outstanding = max_outstanding
        self.shares = shares or Shares({SEQUENCES: max_outstanding})
        self._started = False
        self._changed = asyncio.Event()
        self._failure: Condition | None = None
        self._broken = asyncio.Event()
        self._socket = NodeSocket(endpoint, max_queued=4 * max_outstanding)
        self._load = load or SharedLoads(1).of(0)
        self._assignments = Assignments(
            self._socket, self.attendance, self.recovery, self._load, report, self.shares
        )
        self._requests = self._assignments.requests
        self._receiver: asyncio.Task[None] | None = None

    @property
    def observer(self) -> EngineObserver:
        return self._assignments.observer

    @observer.setter
    def observer(self, observer: EngineObserver) -> None:
        self._assignments.observer = observer

    # --- life ----------------------------------------------------------------------------------

    def bind(self) -> None:
        """Open the endpoint, so that nodes can connect while others still load."""
        self._socket.bind()
        self._receiver = asyncio.create_task(self._receive(), name="engine-client")

    async def start(self, timeout: float) -> None:
        """Bind (unless done) and wait until every node is ready, but for those known to be lost.

        Raises NodeDied when one isn't within `timeout` seconds, or `fail` is called meanwhile.
        """
        if not self._socket.is_open:
            self.bind()
        try:
            async with asyncio.timeout(timeout):
                while self._failure is None and not self._are_all_there():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NodeDied(f"{self.condition.detail} after {timeout:g} s") from None
        if self._failure is not None:
            raise NodeDied(self._failure.detail)
        self._started = True
        self.recovery.begin()
        self._assignments.update()

    async def close(self) -> None:
        """End every request, stop receiving and close the endpoint."""
        self.fail("the engine client was closed")
        if self._receiver is not None:
            self._receiver.cancel()
            await asyncio.gather(self._receiver, return_exceptions=True)
            self._receiver = None
        self._socket.close()

    async def failure(self) -> str:
        """Why this client can't go on, once that is so. Without `fail`: whoever calls that knows.
        Nor is it any node's loss."""
        await self._broken.wait()
        assert self._failure is not None, "it is broken"
        return self._failure.detail

    def enter(self, membership: Membership) -> None:
        """This is served from now on: new requests go to its attention nodes only, and so do those
        that wait."""
        self._assignments.enter(membership)
        self._changed.set()

    def lose(self, down: NodeDown) -> None:
        """A node has died and will be started again. An attention node's requests go on at others;
        without experts all of them wait."""
        self._assignments.lose(down)
        self._changed.set()

    def forget(self, gone: NodeGone) -> None:
        """A node isn't one of the instance's any more."""
        self._assignments.forget_node(gone.role, gone.node)
        self._changed.set()

    def change_limits(self, limits: QueueLimits, recovery_seconds: float) -> None:
        """Of what comes from now on."""
        self._queue_limits = limits
        self.recovery.timeout = recovery_seconds

    def fail(self, message: str) -> None:
        """It ends: all requests end with NodeDied, which also names the nodes that they wait for,
        and nothing new is taken."""
        if self._failure is None:
            detail = "; ".join([*map(str, self.attendance.awaited), message])
            self._failure = Condition(Phase.FAILED, message, detail)
        self._changed.set()
        self.recovery.close()
        for request_id in list(self._requests):
            self._assignments.drop(request_id, NodeDied(self._failure.detail))

    @property
    def condition(self) -> Condition:
        """Whether requests are served, and what is the matter."""
        if self._failure is not None:
            return self._failure
        attendance, missing = self.attendance, self._missing()
        if not self._started:
            return Condition(Phase.LOADING, missing, missing)
        lacks = attendance.awaited or list(attendance.lacks.values())
        seconds = self.recovery.clock() - min(lack.since for lack in lacks) if lacks else None
        text = "; ".join([lack.state for lack in lacks] or [missing] * bool(missing))
        detail = "; ".join(map(str, lacks)) or missing
        if self.recovery.gave_up:
            late = f" and was not back within {self.recovery.timeout:g} s"
            return Condition(Phase.FAILED, text + late, detail + late, seconds)
        if not attendance.serves:
            return Condition(Phase.RECOVERING, text, detail, seconds)
        phase = Phase.DEGRADED if text else Phase.HEALTHY
        return Condition(phase, text, detail, seconds)

    def state(self) -> str | None:
        """Why no request can be served now, in words for anybody; None when it can."""
        condition = self.condition
        return None if condition.serves else condition.text

    @property
    def limits(self) -> RequestLimits:
        """What one request may ask for; known once `start` has returned."""
        context = min(ready.max_model_len for ready in self.attendance.known)
        return RequestLimits(context, self._vocab_size, self._routing_bytes)

    @property
    def outstanding(self) -> int:
        """Sequences in flight."""
        return len(self._requests)

    def _are_all_there(self) -> bool:
        return bool(self.attendance.takers) and not self.attendance.missing

    def _missing(self) -> str:
        missing = self.attendance.missing
        names, plural = ", ".join(map(str, missing)), len(missing) > 1
        state = f"node{'s' * plural} {names} {'are' if plural else 'is'} not ready yet"
        return f"attention {state}" if missing else ""

    def _give_up_waiting(self) -> None:
        log.error("%s; requests that wait for it end", self.condition.detail)
        self._assignments.fail_waiting(NodeDied(self.condition.detail))

    # --- requests ------------------------------------------------------------------------------

    def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        eos_token_ids: tuple[int, ...] = (),
        observed: bool = True,
    ) -> TokenStream:
        """`submit` for one sequence."""
        sequence = SequenceRequest(request_id, prompt_ids, params, eos_token_ids)
        return self.submit([sequence], observed)

    def submit(
        self,
        sequences: Sequence[SequenceRequest],
        observed: bool = True,
        client: str = "",
        size: int = 0,
    ) -> TokenStream:
        """Send these sequences off at once; the stream gives the tokens of all, as they come. They
        wait while nobody can take them.

        The caller closes the stream; that aborts what is unfinished. observed: whether the observer
        is told of them. client: for whom they count, and size bytes with them, to their ends.

        Raises RequestError for the first invalid one, Overloaded when they don't fit beside what
        is in flight or nodes still load, NodeDied when nodes were lost for too long. Nothing is
        left behind.
        """
        messages = list(self._messages(sequences, client))
        self._check_ids(sequences)
        self._reserve(len(sequences), client, size)
        stream = TokenStream([m.request_id for m in messages], self._assignments.abandon)
        each = size // len(messages)
        requests = [Outstanding(message, stream, each) for message in messages]
        try:
            for request in requests:
                request.total_timer = self._start_timer(request.request_id)
            self._assignments.add(requests)
        except BaseException:
            stream.close()
            raise
        if observed:
            nodes = [None if request.at is None else request.at.node for request in requests]
            self.observer.submitted(messages, nodes)
            for request in requests:
                request.observed = True
        return stream

    def abort(self, request_id: str) -> None:
        """End one request; its stream sees FinishReason.ABORT. Unknown ids are ignored."""
        request = self._assignments.abandon(request_id, FinishReason.ABORT)
        if request is not None:
            request.stream.put(TokenEvent(request_id, [], FinishReason.ABORT))

    def reset_prefix_cache(self) -> None:
        """Have every member drop the cached prefixes that no request uses."""
        for node in self.attendance.takers:
            at = At(node, self.attendance.incarnation(node))
            self._assignments.send(at, Reset())

    def check_room(self, newcomers: int, client: str = "", size: int = 0) -> None:
        """Raises Overloaded when so many more sequences, and bytes, aren't taken of this client
        now, and RequestError when they never are; `submit` asks it too."""
        self.shares.check(client, {SEQUENCES: newcomers, MEMORY: size})
        in_flight = len(self._requests) + self._load.others_sequences()
        if in_flight + newcomers > self._max_outstanding:
            raise Overloaded(
                f"{in_flight} sequences are in flight and {newcomers} more were "
                f"asked for, but at most {self._max_outstanding} are taken; try again later"
            )
        self._check_queue(in_flight, newcomers)

    def _reserve(self, newcomers: int, client: str, size: int) -> None:
        """`check_room`, told to other front ends first: of two that come at once into the last
        room not both are taken."""
        self._load.set_sequences(len(self._requests) + newcomers)
        try:
            self.check_room(newcomers, client, size)
        except (Overloaded, RequestError):
            self._load.set_sequences(len(self._requests))
            raise

    def _messages(self, sequences: Sequence[SequenceRequest], client: str) -> Iterator[Submit]:
        """One each; what several have in common is checked and made once."""
        before: SequenceRequest | None = None
        limits = self._checked_limits()
        for sequence in sequences:
            if before is None or not sequence.asks_as(before):
                limits.check(sequence.params)
                check_integer("priority", sequence.priority, -MAX_PRIORITY, MAX_PRIORITY)
                room = limits.room(sequence.prompt_ids, sequence.params)
                message = submit_message(sequence, room, self._queue_limits.queue_seconds, client)
            else:
                if sequence.prompt_ids is not before.prompt_ids:
                    room = limits.room(sequence.prompt_ids, sequence.params)
                message = msgspec.structs.replace(
                    message,
                    request_id=sequence.request_id,
                    seed=sequence.drawn_seed(),
                    prompt=sequence.prompt_ids,
                    max_tokens=room,
                )
            before = sequence
            yield message

    def _checked_limits(self) -> RequestLimits:
        if self._failure is not None or self.recovery.gave_up:
            raise NodeDied(self.condition.detail)
        if not self._started:
            raise Overloaded(f"{self.condition.detail}; try again in a moment")
        return self.limits

    def _check_ids(self, sequences: Sequence[SequenceRequest]) -> None:
        ids = [sequence.request_id for sequence in sequences]
        if len(set(ids)) < len(ids) or any(request_id in self._requests for request_id in ids):
            raise RequestError(f"a request id is already in use: {cited(ids, 200)}", "request_id")

    def _check_queue(self, in_flight: int, newcomers: int) -> None:
        """Nodes that come back count: they will run as many as they did."""
        allowed = self._queue_limits.queued
        if allowed is None:
            return
        running = sum(ready.max_num_seqs for ready in self.attendance.known)
        queued = in_flight + newcomers - running
        if queued > allowed:
            raise Overloaded(
                f"{in_flight} sequences are in flight, {running} can run at once and "
                f"{allowed} may wait; there is no room for {newcomers} more, try again later"
            )

    def _start_timer(self, request_id: str) -> asyncio.TimerHandle | None:
        seconds = self._queue_limits.total_seconds
        if seconds is None:
            return None
        text = f"the request was ended after {seconds:g} s, the longest that one may take"
        loop = asyncio.get_running_loop()
        return loop.call_later(seconds, self._assignments.fail, request_id, RequestTimeout(text))

    # --- wire ----------------------------------------------------------------------------------

    async def _receive(self) -> None:
        pauses = Pauses()
        try:
            while True:
                self._hear(*await self._socket.receive())
                await pauses.take()
        except Exception as error:  # whatever ends this task, every stream must hear of it
            log.exception("receiving from the attention nodes failed")
            if self._failure is None:
                self._broken.set()
            self.fail(f"the front end can't receive tokens any more: {error!r}")

    def _hear(self, at: At, message: FromNode | ProtocolError) -> None:
        """A node that can't be understood is given up: its requests go on elsewhere."""
        if self.attendance.is_gone(at.node, at.incarnation):
            return
        if not self.attendance.knows(at.node) and not isinstance(message, NodeReady):
            log.warning("dropped a message of attention node %d, which is none", at.node)
            return
        try:
            if isinstance(message, ProtocolError):
                raise message
            self._on_message(at, message)
        except ProtocolError as error:
            log.error("attention node %d: %s", at.node, error)
            self._assignments.give_up(at, str(error))
            self._changed.set()

    def _on_message(self, at: At, message: FromNode) -> None:
        if message.node != at.node:
            raise ProtocolError(f"its identity is {at.node}, but it calls itself {message.node}")
        if isinstance(message, Tokens):
            self.last_token_at = monotonic()
            events = self._assignments.of(at, message.events)
            self.observer.produced(at.node, events)
            for event in events:
                self._assignments.hear(event)
        elif isinstance(message, RequestFailed):
            self._assignments.fail(message.request_id, _error(message), at)
        else:
            if message.incarnation != at.incarnation:
                raise ProtocolError(
                    f"its identity is incarnation {at.incarnation}, but it calls itself "
                    f"{message.incarnation}"
                )
            self._assignments.hear_ready(message)
            self._changed.set()


def _error(message: RequestFailed) -> MegaInferError:
    if message.overloaded:
        return Overloaded(message.message)
    return (RequestError if message.client_error else MegaInferError)(message.message)
