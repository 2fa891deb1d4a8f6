"""Asking other expert nodes for experts, one after the other."""

import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from time import monotonic
from typing import NamedTuple

from megainfer.compute.experts import LayerExperts
from megainfer.errors import MegaInferError, NodeDied, ProtocolError
from megainfer.expert_node.experts import Place
from megainfer.expert_node.handover.terms import (
    ANSWER_SECONDS,
    DIGEST_BYTES,
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


class _Pair(NamedTuple):
    """A node that is asked."""

    connection: socket.socket
    back: PayloadChannel


class Asking:
    """Of several nodes: the one that gave last is asked first, and who fails is asked no more. One
    thread at a time.

    nodes: those that may have experts.
    """

    def __init__(self, nodes: Sequence[GivingNode], terms: HandoverTerms) -> None:
        self._terms = terms
        self._nodes = list(nodes)
        self._pairs: dict[GivingNode, _Pair] = {}
        self._given: dict[int, int] = {}  # experts, by the node that gave them
        self._began = monotonic()
        self._ends = ExitStack()

    def prepared(self, layer: LayerExperts, place: Place) -> object | None:
        """This expert, for `LayerExperts.put`; None where nobody gives it, within a time that is
        bounded for each node."""
        for node in list(self._nodes):
            try:
                found = self._from_node(node, layer, place)
            except (MegaInferError, OSError, RuntimeError) as error:  # torch's own, too
                log.warning("expert node %d gives no experts: %s", node.node, error)
                self._nodes.remove(node)
                continue
            if found is not None:
                self._nodes.remove(node)
                self._nodes.insert(0, node)
                self._given[node.node] = self._given.get(node.node, 0) + 1
                return found
        return None

    def close(self) -> None:
        """Ask no more; says what was given."""
        self._ends.close()
        self._nodes, self._pairs = [], {}
        for node, count in self._given.items():
            seconds = monotonic() - self._began
            log.info("%d experts came from expert node %d, within %.1f s", count, node, seconds)
        self._given = {}

    def _from_node(self, node: GivingNode, layer: LayerExperts, place: Place) -> object | None:
        pair = self._pairs.get(node)
        if pair is None:
            pair = self._pairs[node] = self._met(node, layer)
        channel = within(pair.connection, ANSWER_SECONDS, f"expert node {node.node}")
        channel.send(Frame.EXPERT, WHICH.pack(*place))
        digest = channel.receive_body(Frame.GIVEN)
        if not digest:
            return None
        if len(digest) != DIGEST_BYTES:
            raise ProtocolError(f"a digest of {len(digest)} bytes")
        stored = new_buffer(layer.copied_bytes)
        pair.back.receive(stored, ANSWER_SECONDS)
        if digest_of(stored) != digest:
            layer_index, expert = place
            raise ProtocolError(f"expert {expert} of layer {layer_index} isn't what it was there")
        return layer.adopt(stored)

    def _met(self, node: GivingNode, layer: LayerExperts) -> _Pair:
        deadline = monotonic() + CONNECT_SECONDS
        try:
            address, name = Address(node.host, node.port), f"expert node {node.node}"
            connection = dial_tcp(address, name, deadline)
        except OSError as error:
            raise NodeDied(f"it can't be reached: {error}") from error
        self._ends.callback(connection.close)
        connection = self._terms.secured(connection, calls=True)
        self._ends.callback(connection.close)
        channel = within(connection, ANSWER_SECONDS, f"expert node {node.node}")
        give_proof(channel, self._terms.key, PURPOSE)
        channel.send(Frame.EXPERTS, self._terms.form_of(layer))
        channel.receive(Frame.EXPERTS, 0)
        groups = groups_for("gloo", self._terms.host, None)
        self._ends.callback(groups.close)
        store = PairStore(channel)
        _, back = open_channels(groups, store, calls=True)
        store.close()
        return _Pair(connection, back)
