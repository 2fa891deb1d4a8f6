"""Asking other expert nodes for experts, one after the other."""

import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import Event, Lock
from time import monotonic

from megainfer.compute.experts import LayerExperts
from megainfer.errors import MegaInferError, NodeDied, ProtocolError
from megainfer.expert_node.experts import Place
from megainfer.expert_node.handover.terms import (
    ANSWER_SECONDS,
    BUSY,
    DIGEST_BYTES,
    IDLE_SECONDS,
    PURPOSE,
    WHICH,
    HandoverTerms,
    digest_of,
    new_buffer,
    within,
)
from megainfer.m2n.dist.channel import Channel as PayloadChannel
from megainfer.m2n.dist.groups import groups_for, open_channels
from megainfer.m2n.dist.listening import Address, dial_tcp
from megainfer.m2n.dist.pair_store import PairStore
from megainfer.m2n.dist.proof import give_proof
from megainfer.m2n.host.handshake import Frame
from megainfer.messages.weights import GivingNode

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0


BUSY_SECONDS = 30.0
"""For which an expert is asked for again, where who has it gives others."""
PAUSE_SECONDS = 0.2


class _Busy(Exception):
    """It is to be asked again."""


class _Ended(Exception):
    """Nobody is to be asked any more."""


@dataclass(slots=True)
class _Pair:
    """A node that is asked. used: when it last answered, on the monotonic clock."""

    connection: socket.socket
    back: PayloadChannel
    ends: ExitStack
    used: float


class Asking:
    """Of several nodes: the one that gave last is asked first, who is busy is asked again, and who
    fails is asked no more. One thread at a time, but for `end`.

    nodes: those that may have experts.
    """

    def __init__(self, nodes: Sequence[GivingNode], terms: HandoverTerms) -> None:
        self._terms = terms
        self._nodes = list(nodes)
        self._pairs: dict[GivingNode, _Pair] = {}
        self._given: dict[int, int] = {}  # experts, by the node that gave them
        self._began = monotonic()
        self._ended = Event()
        self._lock = Lock()  # of what follows, and of what is done with a layer
        self._in_use: socket.socket | None = None

    def prepared(self, layer: LayerExperts, place: Place) -> object | None:
        """This expert, for `LayerExperts.put`; None where nobody gives it, within a time that is
        bounded for each node, or once it is to `end`."""
        until = monotonic() + BUSY_SECONDS
        nodes = list(self._nodes)
        try:
            while nodes:
                found, busy = self._asked_of(nodes, layer, place)
                if found is not None or not busy or monotonic() > until:
                    return found
                nodes = busy
                self._ended.wait(PAUSE_SECONDS)
        except _Ended:
            pass
        return None

    def end(self) -> None:
        """Ask nobody any more, and part with who is asked just now: from here on no layer is
        touched. Any thread."""
        self._ended.set()
        with self._lock:
            if self._in_use is not None:
                with suppress(OSError):  # the other end may have gone
                    self._in_use.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ask no more; says what was given."""
        for node in [*self._pairs]:
            self._part(node)
        self._nodes = []
        for node_index, count in self._given.items():
            seconds = monotonic() - self._began
            log.info(
                "%d experts came from expert node %d, within %.1f s", count, node_index, seconds
            )
        self._given = {}

    def _asked_of(
        self, nodes: Sequence[GivingNode], layer: LayerExperts, place: Place
    ) -> tuple[object | None, list[GivingNode]]:
        """What the first that has it gives, and who is busy of those before."""
        busy = []
        for node in nodes:
            try:
                found = self._from_node(node, layer, place)
            except _Busy:
                busy.append(node)
                continue
            except (MegaInferError, OSError, RuntimeError) as error:  # torch's own, too
                self._part(node)
                if self._ended.is_set():
                    raise _Ended from error
                log.warning("expert node %d gives no experts: %s", node.node, error)
                self._nodes.remove(node)
                continue
            if found is not None:
                self._nodes.remove(node)
                self._nodes.insert(0, node)
                self._given[node.node] = self._given.get(node.node, 0) + 1
                return found, busy
        return None, busy

    def _from_node(self, node: GivingNode, layer: LayerExperts, place: Place) -> object | None:
        pair = self._pair_with(node, layer)
        channel = within(pair.connection, ANSWER_SECONDS, f"expert node {node.node}")
        channel.send(Frame.EXPERT, WHICH.pack(*place))
        digest = channel.receive_body(Frame.GIVEN)
        pair.used = monotonic()
        if digest == BUSY:
            raise _Busy
        if not digest:
            return None
        if len(digest) != DIGEST_BYTES:
            raise ProtocolError(f"a digest of {len(digest)} bytes")
        stored = new_buffer(layer.copied_bytes)
        pair.back.receive(stored, ANSWER_SECONDS)
        if digest_of(stored) != digest:
            layer_index, expert = place
            raise ProtocolError(f"expert {expert} of layer {layer_index} isn't what it was there")
        with self._lock:
            if self._ended.is_set():
                raise _Ended
            return layer.adopt(stored)

    def _pair_with(self, node: GivingNode, layer: LayerExperts) -> _Pair:
        """That there is, unless its other end may be about to leave."""
        pair = self._pairs.get(node)
        if pair is not None and monotonic() - pair.used > IDLE_SECONDS / 2:
            self._part(node)
            pair = None
        if pair is None:
            return self._met(node, layer)
        self._use(pair.connection)
        return pair

    def _use(self, connection: socket.socket | None) -> None:
        """From now on it is this one that `end` ends."""
        with self._lock:
            if self._ended.is_set():
                raise _Ended
            self._in_use = connection

    def _part(self, node: GivingNode) -> None:
        if (pair := self._pairs.pop(node, None)) is not None:
            pair.ends.close()

    def _met(self, node: GivingNode, layer: LayerExperts) -> _Pair:
        self._use(None)
        deadline = monotonic() + CONNECT_SECONDS
        address, name = Address(node.host, node.port), f"expert node {node.node}"
        with ExitStack() as ends:
            try:
                connection = dial_tcp(address, name, deadline)
            except OSError as error:
                raise NodeDied(f"it can't be reached: {error}") from error
            ends.callback(connection.close)
            connection = self._terms.secured(connection, calls=True)
            ends.callback(connection.close)
            self._use(connection)
            back = self._opened(connection, name, layer, ends)
            pair = _Pair(connection, back, ends.pop_all(), monotonic())
        self._pairs[node] = pair
        return pair

    def _opened(
        self, connection: socket.socket, name: str, layer: LayerExperts, ends: ExitStack
    ) -> PayloadChannel:
        """By which experts come. Raises _Busy where too many ask already."""
        channel = within(connection, ANSWER_SECONDS, name)
        give_proof(channel, self._terms.key, PURPOSE)
        channel.send(Frame.EXPERTS, self._terms.form_of(layer))
        if channel.receive_body(Frame.EXPERTS) == BUSY:
            raise _Busy
        groups = groups_for("gloo", self._terms.host, None)
        ends.callback(groups.close)
        store = PairStore(channel)
        _, back = open_channels(groups, store, calls=True)
        store.close()
        return back
