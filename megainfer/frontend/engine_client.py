"""The front end's side of the conversation with the attention nodes.

Each node connects and says NodeReady. Requests go down, tokens come up. Both the API server and the
offline LLM stand on this, so nothing of HTTP is in here. Everything runs on one asyncio event loop.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from time import monotonic

from megainfer.errors import (
    MegaInferError,
    NodeDied,
    Overloaded,
    ProtocolError,
    RequestError,
    RequestTimeout,
)
from megainfer.frontend.engine_observer import EngineObserver, NobodyObserves
from megainfer.frontend.node_socket import NodeSocket
from megainfer.frontend.queue_limits import QueueLimits
from megainfer.frontend.request_limits import RequestLimits
from megainfer.frontend.router import Router
from megainfer.frontend.sequence_request import SequenceRequest, submit_message
from megainfer.frontend.token_stream import TokenStream
from megainfer.messages import (
    Abort,
    FinishReason,
    FromNode,
    NodeReady,
    RequestFailed,
    Reset,
    Submit,
    TokenEvent,
    Tokens,
)
from megainfer.sampling import MAX_PRIORITY, SamplingParams, check_integer
from megainfer.topology import Membership

log = logging.getLogger(__name__)

MAX_OUTSTANDING = 4096  # sequences in flight; one more is refused


@dataclass(frozen=True, slots=True)
class _Outstanding:
    node: int
    stream: TokenStream
    timer: asyncio.TimerHandle | None


@dataclass(frozen=True, slots=True)
class _Failure:
    """state: the message without what isn't for everybody."""

    message: str
    state: str


class EngineClient:
    """Submits sequences to the attention nodes and hands out their tokens.

    `vocab_size` is the model's. `start`, then `submit` or `generate`, at last `close`. Whoever
    wants to know of every sequence becomes its `observer`.
    """

    def __init__(
        self,
        endpoint: str,
        num_nodes: int,
        vocab_size: int,
        max_outstanding: int = MAX_OUTSTANDING,
        queue_limits: QueueLimits | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.num_nodes = num_nodes
        self.observer: EngineObserver = NobodyObserves()
        self.last_token_at: float | None = None  # seconds of the monotonic clock; of any request
        self._queue_limits = queue_limits or QueueLimits()
        self._vocab_size = vocab_size
        self._max_outstanding = max_outstanding
        self._router = Router(num_nodes)
        self._members: Collection[int] = range(num_nodes)
        self._ready: dict[int, NodeReady] = {}
        self._changed = asyncio.Event()
        self._requests: dict[str, _Outstanding] = {}
        self._failure: _Failure | None = None
        self._broken = asyncio.Event()
        self._socket = NodeSocket(endpoint, num_nodes, max_queued=4 * max_outstanding)
        self._receiver: asyncio.Task[None] | None = None

    # --- life ----------------------------------------------------------------------------------

    def bind(self) -> None:
        """Open the endpoint, so that nodes can connect while others still load."""
        self._socket.bind()
        self._receiver = asyncio.create_task(self._receive(), name="engine-client")

    async def start(self, timeout: float) -> None:
        """Bind (unless done) and wait until every node is ready.

        Raises NodeDied when one isn't within `timeout` seconds, or `fail` is called meanwhile.
        """
        if not self._socket.is_open:
            self.bind()
        try:
            async with asyncio.timeout(timeout):
                while self._missing_nodes() and self._failure is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NodeDied(f"{self.not_serving()} after {timeout:g} s") from None
        if self._failure is not None:
            raise NodeDied(self._failure.message)

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

        A node's death may show here before anybody is told of it.
        """
        await self._broken.wait()
        assert self._failure is not None, "it is broken"
        return self._failure.message

    def enter(self, membership: Membership) -> None:
        """New requests go to its attention nodes only, once all of these are ready."""
        self._members = membership.attention
        self._router.enter(membership.attention)
        # One that comes back says that it is ready once more.
        self._ready = {node: r for node, r in self._ready.items() if node in self._members}
        self._changed.set()

    def not_serving(self) -> str | None:
        """Why requests can't be served now, in words; None when all is well."""
        return self._still_loading() if self._failure is None else self._failure.message

    def state(self) -> str | None:
        """`not_serving` in a few words for anybody: which node, and what, but no inner texts."""
        return self._still_loading() if self._failure is None else self._failure.state

    def _still_loading(self) -> str | None:
        if missing := self._missing_nodes():
            names = ", ".join(map(str, missing))
            plural = len(missing) > 1
            return f"attention node{'s' * plural} {names} {'are' if plural else 'is'} not ready yet"
        return None

    @property
    def limits(self) -> RequestLimits:
        """What one request may ask for; known once `start` has returned."""
        context = min(ready.max_model_len for ready in self._ready.values())
        return RequestLimits(max_model_len=context, vocab_size=self._vocab_size)

    @property
    def outstanding(self) -> int:
        """Sequences in flight."""
        return len(self._requests)

    def _missing_nodes(self) -> list[int]:
        return [node for node in self._members if node not in self._ready]

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

    def submit(self, sequences: Sequence[SequenceRequest], observed: bool = True) -> TokenStream:
        """Send these sequences off at once; the stream gives the tokens of all, as they come.

        The caller closes the stream; that aborts what is unfinished. observed: whether the observer
        is told of them.

        Raises RequestError for the first invalid one, Overloaded when they don't fit beside what
        is in flight or nodes still load, NodeDied when a node is gone. Nothing is left behind.
        """
        messages = [self._checked(sequence) for sequence in sequences]
        self.check_room(len(sequences))
        self._check_ids(sequences)
        stream = TokenStream([message.request_id for message in messages], self._abandon)
        try:
            for message in messages:
                self._dispatch(message, stream)
        except BaseException:
            stream.close()
            raise
        if observed:
            nodes = [self._requests[message.request_id].node for message in messages]
            self.observer.submitted(messages, nodes)
        return stream

    def abort(self, request_id: str) -> None:
        """End one request; its stream sees FinishReason.ABORT. Unknown ids are ignored."""
        request = self._abandon(request_id, FinishReason.ABORT)
        if request is not None:
            request.stream.put(TokenEvent(request_id, [], FinishReason.ABORT))

    def reset_prefix_cache(self) -> None:
        """Have every member drop the cached prefixes that no request uses."""
        for node in self._members:
            self._socket.send(node, Reset())

    def fail(self, message: str, node: int | None = None, state: str | None = None) -> None:
        """A node is gone: end all requests, or those of attention node `node`, with NodeDied.

        Either way nothing new is taken from now on, since any lost node ends the service. state:
        the message without what isn't for everybody.
        """
        if self._failure is None:
            self._failure = _Failure(message, message if state is None else state)
        self._changed.set()
        for request_id, request in list(self._requests.items()):
            if node is None or request.node == node:
                self._forget(request_id)
                self.observer.ended(request_id, None)
                request.stream.put(NodeDied(message))

    def _break(self, message: str, node: int | None, state: str) -> None:
        """`fail` for what was noticed here, unless it only follows from what is known already."""
        if self._failure is None:
            self._broken.set()
        self.fail(message, node, state)

    def _checked(self, sequence: SequenceRequest) -> Submit:
        if self._failure is not None:
            raise NodeDied(self._failure.message)
        if (reason := self.not_serving()) is not None:
            raise Overloaded(f"{reason}; try again in a moment")
        max_tokens = self.limits.max_tokens(sequence.prompt_ids, sequence.params)
        check_integer("priority", sequence.priority, -MAX_PRIORITY, MAX_PRIORITY)
        return submit_message(sequence, max_tokens, self._queue_limits.queue_seconds)

    def check_room(self, newcomers: int) -> None:
        """Raises Overloaded when so many more sequences aren't taken now; `submit` asks it too."""
        if len(self._requests) + newcomers > self._max_outstanding:
            raise Overloaded(
                f"{len(self._requests)} sequences are in flight and {newcomers} more were "
                f"asked for, but at most {self._max_outstanding} are taken; try again later"
            )
        self._check_queue(newcomers)

    def _check_ids(self, sequences: Sequence[SequenceRequest]) -> None:
        ids = [sequence.request_id for sequence in sequences]
        if len(set(ids)) < len(ids) or any(request_id in self._requests for request_id in ids):
            raise RequestError(f"a request id is already in use: {ids!r:.200}", "request_id")

    def _check_queue(self, newcomers: int) -> None:
        allowed = self._queue_limits.queued
        if allowed is None:
            return
        running = sum(ready.max_num_seqs for ready in self._ready.values())
        queued = len(self._requests) + newcomers - running
        if queued > allowed:
            raise Overloaded(
                f"{len(self._requests)} sequences are in flight, {running} can run at once and "
                f"{allowed} may wait; there is no room for {newcomers} more, try again later"
            )

    def _dispatch(self, message: Submit, stream: TokenStream) -> None:
        node = self._router.assign(message.request_id, message.prompt, message.max_tokens)
        timer = self._start_timer(message.request_id)
        self._requests[message.request_id] = _Outstanding(node, stream, timer)
        try:
            self._socket.send(node, message)
        except BaseException:  # one that can't be encoded, say
            self._forget(message.request_id)
            raise

    def _start_timer(self, request_id: str) -> asyncio.TimerHandle | None:
        seconds = self._queue_limits.total_seconds
        if seconds is None:
            return None
        return asyncio.get_running_loop().call_later(seconds, self._time_out, request_id, seconds)

    def _time_out(self, request_id: str, seconds: float) -> None:
        request = self._abandon(request_id, None)
        if request is not None:
            text = f"the request was ended after {seconds:g} s, the longest that one may take"
            request.stream.put(RequestTimeout(text))

    def _abandon(self, request_id: str, reason: FinishReason | None) -> _Outstanding | None:
        """Forget a request and tell its node; the one way in which an Abort is sent."""
        request = self._forget(request_id)
        if request is None:
            return None
        self.observer.ended(request_id, reason)
        try:
            self._socket.send(request.node, Abort(request_id))
        except (NodeDied, Overloaded) as error:
            # The node can't hear it: it is gone or reads nothing, so none of its requests lives.
            state = f"attention node {request.node} can't be reached"
            self._break(str(error), request.node, state)
        return request

    def _forget(self, request_id: str) -> _Outstanding | None:
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._router.release(request_id)
            if request.timer is not None:
                request.timer.cancel()
        return request

    # --- wire ----------------------------------------------------------------------------------

    async def _receive(self) -> None:
        try:
            while True:
                self._hear(*await self._socket.receive())
        except Exception as error:  # whatever ends this task, every stream must hear of it
            log.exception("receiving from the attention nodes failed")
            state = "the front end can't receive tokens any more"
            self._break(f"{state}: {error!r}", None, state)

    def _hear(self, node: int, message: FromNode | ProtocolError) -> None:
        try:
            if isinstance(message, ProtocolError):
                raise message
            self._on_message(node, message)
        except ProtocolError as error:
            name = f"attention node {node}"
            log.error("%s: %s", name, error)
            self._break(f"{name}: {error}", node, f"{name} said what isn't understood")

    def _on_message(self, node: int, message: FromNode) -> None:
        if message.node != node:
            raise ProtocolError(f"its identity is {node}, but it calls itself {message.node}")
        if isinstance(message, Tokens):
            self.last_token_at = monotonic()
            self.observer.produced(node, message.events)
            for event in message.events:
                self._on_event(event)
        elif isinstance(message, RequestFailed):
            self._on_failed(message)
        else:
            self._ready[node] = message
            self._changed.set()

    def _on_event(self, event: TokenEvent) -> None:
        request = self._requests.get(event.request_id)
        if request is None:
            return  # it was aborted while this was on its way
        if event.finish_reason is None:
            self._router.produced(event.request_id, len(event.token_ids))
        else:
            self._forget(event.request_id)
        request.stream.put(event)

    def _on_failed(self, message: RequestFailed) -> None:
        request = self._forget(message.request_id)
        if request is not None:
            self.observer.ended(message.request_id, None)
            request.stream.put(_error(message))


def _error(message: RequestFailed) -> MegaInferError:
    if message.overloaded:
        return Overloaded(message.message)
    return (RequestError if message.client_error else MegaInferError)(message.message)
