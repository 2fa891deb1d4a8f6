"""The attention node's side of the conversation with one front end: requests in, tokens out."""

import os
import socket
import time
from collections.abc import Iterator

import zmq
from zmq.utils.monitor import recv_monitor_message

from megainfer.errors import NodeDied, ProtocolError
from megainfer.m2n.host.handshake import peer_uid
from megainfer.messages.message import encode
from megainfer.messages.requests import FromNode, ToNode, node_identity, to_node_decoder

MAX_QUEUED_MESSAGES = 100_000
"""What may wait for a front end that reads slowly, before it counts as hung."""
CONNECT_SECONDS = 1.0
"""A front end listens before nodes hear of it, so this is only for one that has just died."""
_RETRY_SECONDS = 0.01


class FrontEndLink:
    """A DEALER socket to the front end's ROUTER.

    It connects once, to a process of its own user, and never again: when the front end is gone its
    name is free, for anybody who read it in /proc/net/unix while it was there.

    timeout: seconds in which the front end has to listen. Raises NodeDied when it doesn't,
    ProtocolError when it is another user's.
    """

    def __init__(
        self, endpoint: str, node: int, incarnation: int = 0, timeout: float = CONNECT_SECONDS
    ) -> None:
        self._context = zmq.Context()
        self._endpoint = endpoint
        self._identity = node_identity(node, incarnation)
        deadline = time.monotonic() + timeout
        try:
            while not self._connect(deadline):
                self._close(linger=0)
                if time.monotonic() + _RETRY_SECONDS > deadline:
                    raise NodeDied(f"no front end listens at {endpoint}")
                time.sleep(_RETRY_SECONDS)  # nothing tells when somebody begins to listen
        except BaseException:
            self._context.destroy(linger=0)
            raise

    def _connect(self, deadline: float) -> bool:
        """Whether somebody listens; nothing was said yet."""
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, self._identity)
        self._socket.setsockopt(zmq.SNDHWM, MAX_QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, MAX_QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 500)  # ms; what was said reaches a living front end
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        told = zmq.EVENT_CONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
        self._events = self._socket.get_monitor_socket(told)
        self._socket.connect(self._endpoint)
        wait_ms = max(0, int(1e3 * (deadline - time.monotonic())))
        event = recv_monitor_message(self._events) if self._events.poll(wait_ms) else None
        if event is None or event["event"] != zmq.EVENT_CONNECTED:
            return False
        _check_user(event["value"])
        return True

    def fileno(self) -> int:
        """Edge-triggered: readable after `receive` was drained only when something is new."""
        return int(self._socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        """Whether `receive` would give something; ask before sleeping on `fileno`."""
        events = self._socket.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)
        return bool(events & zmq.POLLIN)

    def receive(self) -> Iterator[ToNode]:
        """Everything that has come in; never blocks."""
        return map(to_node_decoder.decode, self.receive_bytes())

    def receive_bytes(self) -> Iterator[bytes]:
        """The same as it was sent, for who only passes it on."""
        while self.pending():
            yield self._socket.recv()

    def is_lost(self) -> bool:
        """Whether the connection has ended; it is never made again."""
        return bool(self._events.poll(0))

    def send(self, message: FromNode) -> None:
        """Never blocks; a front end that is gone hears nothing more, which is the supervisor's
        affair. Raises NodeDied when it has stopped reading."""
        self.send_bytes(encode(message))

    def send_bytes(self, data: bytes) -> None:
        """The same of a message that was encoded before."""
        try:
            self._socket.send(data, zmq.DONTWAIT)
        except zmq.Again as error:
            if self.is_lost():  # it left: all else was told already
                return
            raise NodeDied(
                f"the front end left {MAX_QUEUED_MESSAGES} messages unread; it is hung or gone"
            ) from error

    def close(self) -> None:
        self._close()
        self._context.term()

    def _close(self, linger: int | None = None) -> None:
        self._socket.disable_monitor()
        self._events.close()
        self._socket.close(linger)


def _check_user(descriptor: int) -> None:
    """descriptor: of a connection, which stays ZeroMQ's."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        uid = peer_uid(connection)
    if uid != os.geteuid():
        raise ProtocolError(f"the front end runs as user {uid}, this is {os.geteuid()}")
