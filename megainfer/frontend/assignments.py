"""Every sequence in flight: at an attention node, or held here until one takes it.

Whatever may have changed who takes requests ends in `update`, which sends off what is held.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from megainfer.errors import MegaInferError, NodeDied, Overloaded
from megainfer.frontend.attendance import Attendance, Lack
from megainfer.frontend.engine_observer import EngineObserver, NobodyObserves
from megainfer.frontend.node_socket import At, NodeSocket
from megainfer.frontend.outstanding import MAX_LOSSES, Outstanding
from megainfer.frontend.recovery import Recovery
from megainfer.frontend.router import Router
from megainfer.frontend.shared_loads import FrontEndLoad
from megainfer.messages.message import Role
from megainfer.messages.requests import Abort, FinishReason, NodeReady, TokenEvent, ToNode
from megainfer.messages.to_child import NodeDown
from megainfer.sharing.budgets import MEMORY, SEQUENCES
from megainfer.sharing.shares import Shares
from megainfer.topology import Membership

log = logging.getLogger(__name__)

Report = Callable[[NodeDown], None]
PIECE, PIECE_TOKENS = 128, 2**19
"""So many requests, of so many tokens together, are sent off at once before others are heard: about
10 milliseconds' work."""


class Assignments:
    """`requests` by their ids, in the order of submission.

    load: where other front ends see what this one has. report: is told of nodes that can't be used,
    though nobody has said yet that they died.
    """

    def __init__(
        self,
        socket: NodeSocket,
        attendance: Attendance,
        recovery: Recovery,
        load: FrontEndLoad,
        report: Report,
        shares: Shares,
    ) -> None:
        self.requests: dict[str, Outstanding] = {}
        self.observer: EngineObserver = NobodyObserves()
        self._socket = socket
        self._attendance = attendance
        self._recovery = recovery
        self._report = report
        self._load = load
        self._shares = shares
        self._router = Router(0, shared=load)
        self._going_on: asyncio.Handle | None = None

    # --- one sequence ---------------------------------------------------------------------------

    def add(self, requests: Sequence[Outstanding]) -> None:
        """Send them off, or hold them; they are of one client. What can't be sent at all leaves
        nothing behind."""
        size = sum(request.size for request in requests)
        client = requests[0].submit.client
        self._shares.take(client, {SEQUENCES: len(requests), MEMORY: size})
        for request in requests:
            self.requests[request.request_id] = request
        self._load.set_sequences(len(self.requests))
        piece = _piece(requests)
        try:
            self._place(piece)
        except BaseException:  # one that can't be encoded, say
            for request in requests:
                if request.at is None:
                    self.forget(request.request_id)
            raise
        if len(requests) > len(piece):
            self._go_on_soon()

    def hear(self, event: TokenEvent) -> None:
        """Its next token, or its end, of those that are `of` its node."""
        request = self.requests.get(event.request_id)
        if request is None:
            return  # it was ended by an event before
        told = request.heard(event)
        if told is None:
            return
        if event.finish_reason is None:
            self._router.produced(event.request_id, len(event.token_ids))
        else:
            self.forget(event.request_id)
        request.output += event.token_ids
        request.stream.put(told)

    def of(self, at: At, events: Sequence[TokenEvent]) -> list[TokenEvent]:
        """Those of sequences that this node has; it may not know yet that others have left it."""
        get = self.requests.get
        return [e for e in events if (own := get(e.request_id)) is not None and own.at == at]

    def fail(self, request_id: str, error: MegaInferError, at: At | None = None) -> None:
        """End it with an error. at: its node, where that says so."""
        if at is not None and self._at(request_id, at) is not None:
            self.drop(request_id, error)
        elif at is None and (request := self.abandon(request_id, None)) is not None:
            request.stream.put(error)

    def drop(self, request_id: str, error: MegaInferError) -> None:
        """End it with an error; its node knows, or needn't."""
        request = self.forget(request_id)
        if request is not None:
            self.observer.ended(request_id, None)
            request.stream.put(error)

    def abandon(self, request_id: str, reason: FinishReason | None) -> Outstanding | None:
        """Forget it and tell its node; the one way in which an Abort is sent."""
        request = self.forget(request_id)
        if request is not None:
            self.observer.ended(request_id, reason)
            if request.at is not None:
                self.send(request.at, Abort(request_id))
        return request

    def forget(self, request_id: str) -> Outstanding | None:
        """It is in flight no more."""
        request = self.requests.pop(request_id, None)
        if request is not None:
            self._load.set_sequences(len(self.requests))
            request.cancel_timers()
            self._shares.give_back(request.submit.client, {SEQUENCES: 1, MEMORY: request.size})
            if request.at is not None:
                self._router.release(request_id)
        return request

    # --- nodes ----------------------------------------------------------------------------------

    def send(self, to: At, message: ToNode) -> None:
        """A node that can't hear it is given up."""
        try:
            self._socket.send(to, message)
        except (NodeDied, Overloaded) as error:
            self.give_up(to, str(error))

    def give_up(self, at: At, message: str) -> None:
        """Nothing more is taken from this incarnation, whatever the supervisor knows of it."""
        down = NodeDown(Role.ATTENTION, at.node, message, at.incarnation)
        if self.lose(down, died=False):
            self._report(down)

    def lose(self, down: NodeDown, died: bool = True) -> bool:
        """A node has died: what it had goes on elsewhere. False: that was known."""
        lack = self._attendance.lose(down, self._recovery.clock(), died)
        if lack is None:
            return False
        self._recovery.lost(lack)
        if down.role is Role.ATTENTION:
            self._router.forget_prefixes(down.node)
            self._take_from(At(down.node, down.incarnation), lack)
        self.update()
        return True

    def enter(self, membership: Membership) -> None:
        """Another membership, which can serve. What nodes have that are none of its members goes
        on at those that are."""
        self._recovery.entered(self._attendance.enter(membership))
        for request in list(self.requests.values()):
            if request.at is not None and request.at.node not in membership.attention:
                self._move(request, request.at)
        self.update()

    def forget_node(self, role: Role, node: int) -> None:
        """It won't come back."""
        self._attendance.forget(role, node)
        self.update()

    def hear_ready(self, ready: NodeReady) -> None:
        """An attention node can take requests; what it had as an earlier process is gone."""
        if self._attendance.hear_ready(ready):
            lack = Lack(Role.ATTENTION, ready.node, "it was started again", self._recovery.clock())
            self._take_from(At(ready.node, ready.incarnation - 1), lack)
            self.update()

    def update(self) -> None:
        """Send off what is held, if there is anybody to take it; know whether to wait."""
        self._send_off()
        self._recovery.update(self._attendance.serves, all_sent=self._going_on is None)

    def fail_waiting(self, error: MegaInferError) -> None:
        """End those that nobody computes: all where experts lack, else those that are held."""
        lacks_experts = self._attendance.lacks_experts
        for request in list(self.requests.values()) if lacks_experts else self._held():
            self.fail(request.request_id, error)

    def _send_off(self) -> None:
        """The first of those that are held; the others once others have been heard."""
        held = self._held()
        piece = _piece(held) if self._attendance.takers else held
        try:
            self._place(piece)
        except Exception:  # whatever can't be encoded: nobody above could end its request
            log.exception("requests can't be sent to an attention node")
            self._send_off_each(piece)
        if self._attendance.takers and len(held) > len(piece):
            self._go_on_soon()

    def _send_off_each(self, piece: Sequence[Outstanding]) -> None:
        """One of them can't be sent, and ends; the others needn't."""
        for request in piece:
            if self._waits(request):
                try:
                    self._place([request])
                except Exception as error:  # this one it was, and its client is told
                    self.fail(request.request_id, MegaInferError(f"it can't be sent: {error}"))

    def _go_on_soon(self) -> None:
        if self._going_on is None:
            self._going_on = asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = None
        self._send_off()
        if self._attendance.serves and self._going_on is None:
            self._recovery.update(serves=True)

    def _place(self, requests: Sequence[Outstanding]) -> None:
        """Choose nodes and send them off; hold them where nobody can take them. What goes to one
        node of one prompt goes in one message.

        A node that can't be sent it is given up, and with that all who wait are sent off: those of
        these that weren't sent are among them.
        """
        families = deque(self._families(requests))
        while families:
            at, family = families[0]
            try:
                self._send_family(at, family)
            except (NodeDied, Overloaded) as error:
                self._take_back(families)
                self.give_up(at, str(error))
                return
            except BaseException:
                self._take_back(families)
                raise
            families.popleft()

    def _families(self, requests: Sequence[Outstanding]) -> Iterable[tuple[At, list[Outstanding]]]:
        """They have nodes from here on."""
        if not (takers := self._attendance.takers):
            for request in requests:
                self._hold(request)
            return ()
        self._router.enter(takers)
        families: dict[tuple[At, int, int], list[Outstanding]] = {}
        for request in requests:
            node, submit = self._assign(request), request.submit
            request.at = At(node, self._attendance.incarnation(node))
            # Siblings were made from one message: they have its very lists. Who has had tokens has
            # none.
            own = id(request) if request.output else id(submit.prompt)
            kin = request.at, own, id(submit.stop_token_ids)
            families.setdefault(kin, []).append(request)
        return [(kin[0], family) for kin, family in families.items()]

    def _send_family(self, at: At, family: Sequence[Outstanding]) -> None:
        """Those of one prompt."""
        message = family[0].message()
        if len(family) > 1:
            siblings = [(other.request_id, other.submit.seed) for other in family[1:]]
            message = msgspec.structs.replace(message, siblings=siblings)
        self._socket.send(at, message)
        for request in family:
            self._placed(request, at)

    def _take_back(self, families: Iterable[tuple[At, list[Outstanding]]]) -> None:
        """They weren't sent, and have no node any more."""
        for _, family in families:
            for request in family:
                self._router.release(request.request_id)
                request.at = None

    def _assign(self, request: Outstanding) -> int:
        submit = request.submit
        return self._router.assign(
            submit.request_id, request.tokens, request.tokens_left, submit.cache_salt
        )

    def _placed(self, request: Outstanding, at: At) -> None:
        if request.queue_timer is not None:
            request.queue_timer.cancel()
            request.queue_timer = None
        if request.leavings:
            again = len(request.tokens) if request.output else 0
            self._recovery.count_replay(at.node, again)
        if request.observed:
            self.observer.moved(request.request_id, at.node)

    def _move(self, request: Outstanding, leaver: At) -> None:
        """From a node that is alive, and had better work no more for it; it is held."""
        self._leave(request)
        self.send(leaver, Abort(request.request_id))

    def _leave(self, request: Outstanding) -> None:
        self._router.release(request.request_id)
        request.leave()

    def _hold(self, request: Outstanding) -> None:
        seconds = request.message().max_queue_seconds
        if seconds is not None and request.queue_timer is None:
            loop = asyncio.get_running_loop()
            request.queue_timer = loop.call_later(seconds, self._expire, request.request_id)

    def _expire(self, request_id: str) -> None:
        text = "the request has waited for a node for as long as it may; try again later"
        self.fail(request_id, Overloaded(text))

    def _take_from(self, lost: At, lack: Lack) -> None:
        """What this and earlier incarnations had is held."""
        for request in list(self.requests.values()):
            at = request.at
            if at is None or at.node != lost.node or at.incarnation > lost.incarnation:
                continue
            if self.requests.get(request.request_id) is not request:
                continue  # it was ended on the way
            self._leave(request)
            request.losses += 1
            if request.losses >= MAX_LOSSES:
                self.fail(request.request_id, _poisonous(request, lack))

    def _held(self) -> list[Outstanding]:
        return [request for request in self.requests.values() if request.at is None]

    def _waits(self, request: Outstanding) -> bool:
        return request.at is None and self.requests.get(request.request_id) is request

    def _at(self, request_id: str, at: At) -> Outstanding | None:
        request = self.requests.get(request_id)
        return request if request is not None and request.at == at else None


def _piece(requests: Sequence[Outstanding]) -> Sequence[Outstanding]:
    """The first of them. Siblings' prompt is one."""
    tokens, prompt = 0, None
    for count, request in enumerate(requests):
        if request.submit.prompt is not prompt:
            prompt = request.submit.prompt
            tokens += len(prompt)
        if count == PIECE or (count and tokens > PIECE_TOKENS):
            return requests[:count]
    return requests


def _poisonous(request: Outstanding, lack: Lack) -> MegaInferError:
    return MegaInferError(
        f"{request.losses} attention nodes died while they had this request, the last: {lack}; it "
        "may be why, so it isn't tried again"
    )
