"""Giving experts to other expert nodes, beside whatever this one computes."""

import logging
import socket
from contextlib import ExitStack, suppress
from threading import Event, Lock, Semaphore, Thread

from megainfer.errors import MegaInferError, NodeDied, ProtocolError
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.handover.terms import (
    ANSWER_SECONDS,
    BUSY,
    IDLE_SECONDS,
    PURPOSE,
    WHICH,
    HandoverTerms,
    digest_of,
    within,
)
from megainfer.m2n.dist.channel import Channel as PayloadChannel
from megainfer.m2n.dist.groups import Groups, groups_for, open_channels
from megainfer.m2n.dist.listening import Address, TcpListener
from megainfer.m2n.dist.pair_store import PairStore
from megainfer.m2n.dist.proof import demand_proof
from megainfer.m2n.host.handshake import Frame
from megainfer.m2n.host.meeting import HANDSHAKE_SECONDS, Doorman
from megainfer.memory import GIVEN_AT_ONCE

log = logging.getLogger(__name__)

MOST_ASKING = 64
"""Connected at once, each with a thread; most of them wait, or prepare what they have."""
ROOM_SECONDS = ANSWER_SECONDS / 2
"""How long an expert waits for others to be given, before whoever asks is told to come again."""


class Giver:
    """Of one expert node, for as long as it lives. Raises ConfigError where it can't listen."""

    def __init__(self, node: int, model: ExpertModel, terms: HandoverTerms) -> None:
        self._node, self._model, self._terms = node, model, terms
        self._groups: Groups = groups_for("gloo", terms.host, None)
        self._room = Semaphore(GIVEN_AT_ONCE)
        self._asking: set[socket.socket] = set()
        self._letting_in = Lock()
        self._closed = Event()
        listener = TcpListener.create(terms.host)
        self.address: Address = listener.address
        self._doorman = Doorman(listener, f"expert node {node}", self._let_in)

    def close(self) -> None:
        """Give no more: whoever asks finds its connection ended."""
        self._closed.set()
        self._doorman.close()
        with self._letting_in:
            for connection in self._asking:
                with suppress(OSError):  # the other end may have gone
                    connection.shutdown(socket.SHUT_RDWR)
        self._groups.close()

    def _let_in(self, connection: socket.socket, deadline: float) -> None:
        """In a thread that is needed for others: who has proved itself gets one of its own."""
        with ExitStack() as undo:
            undo.callback(connection.close)
            secured = self._terms.secured(connection, calls=False)
            undo.callback(secured.close)
            channel = within(secured, HANDSHAKE_SECONDS, "a node that asks for experts")
            demand_proof(channel, self._terms.key, PURPOSE)
            if not self._has_place(secured):
                channel.receive_body(Frame.EXPERTS)
                channel.send(Frame.EXPERTS, BUSY)
                return
            undo.callback(self._gone, secured)
            self._start_giving(secured, undo.pop_all())

    def _start_giving(self, connection: socket.socket, undo: ExitStack) -> None:
        """undo: ends it. Raises NodeDied where the machine has no thread left."""
        try:
            Thread(
                target=self._give, args=(connection, undo), name="giving experts", daemon=True
            ).start()
        except RuntimeError as error:
            undo.close()
            raise NodeDied(f"a node that asks for experts gets no thread: {error}") from error

    def _has_place(self, connection: socket.socket) -> bool:
        """For one more, which has it then."""
        with self._letting_in:
            has = len(self._asking) < MOST_ASKING and not self._closed.is_set()
            if has:
                self._asking.add(connection)
            return has

    def _gone(self, connection: socket.socket) -> None:
        with self._letting_in:
            self._asking.discard(connection)

    def _give(self, connection: socket.socket, undo: ExitStack) -> None:
        with undo:
            try:
                self._give_all(connection)
            except (MegaInferError, OSError, RuntimeError) as error:  # torch's own, too
                if not self._closed.is_set():
                    log.debug("expert node %d gives no more: %s", self._node, error)

    def _give_all(self, connection: socket.socket) -> None:
        channel = within(connection, ANSWER_SECONDS, "a node that asks for experts")
        form = self._terms.form_of(self._model.any_layer)
        if channel.receive_body(Frame.EXPERTS) != form:
            channel.refuse("it computes with experts in another form, or with other weights")
        channel.send(Frame.EXPERTS, b"")
        store = PairStore(channel)
        out, _ = open_channels(self._groups, store, calls=False)
        store.close()
        while not self._closed.is_set():
            try:
                which = within(connection, IDLE_SECONDS, channel.peer).receive_body(Frame.EXPERT)
            except NodeDied:
                return  # it has what it wants, or is gone
            self._give_one(connection, out, which)

    def _give_one(self, connection: socket.socket, out: PayloadChannel, which: bytes) -> None:
        channel = within(connection, ANSWER_SECONDS, "a node that asks for experts")
        if len(which) != WHICH.size:
            raise ProtocolError(f"{channel.peer} named an expert in {len(which)} bytes")
        layer, expert = WHICH.unpack(which)
        if not self._room.acquire(timeout=ROOM_SECONDS):
            channel.send(Frame.GIVEN, BUSY)
            return
        try:
            stored = self._model.lend(layer, expert)
            if stored is None:
                channel.send(Frame.GIVEN, b"")
                return
            channel.send(Frame.GIVEN, digest_of(stored))
            out.await_sent(out.send(stored), ANSWER_SECONDS)
        finally:
            self._room.release()
