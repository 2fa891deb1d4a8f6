"""The attention node's side of the conversation with the front end: requests in, tokens out."""

import os
from collections.abc import Iterator

import zmq

from megainfer.errors import NodeDied
from megainfer.messages import FromNode, ToNode, encode, node_identity, to_node_decoder

MAX_QUEUED_MESSAGES = 100_000
"""What may wait for a front end that reads slowly, before it counts as hung."""


class FrontEndLink:
    """A DEALER socket to the front end's ROUTER."""

    def __init__(self, endpoint: str, node: int, incarnation: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, node_identity(node, incarnation))
        self._socket.setsockopt(zmq.SNDHWM, MAX_QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, MAX_QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 500)  # ms; what was said reaches a living front end
        self._socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self._socket.connect(endpoint)

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
        while self.pending():
            yield to_node_decoder.decode(self._socket.recv())

    def send(self, message: FromNode) -> None:
        """Never blocks. Raises NodeDied when the front end has stopped reading."""
        try:
            self._socket.send(encode(message), zmq.DONTWAIT)
        except zmq.Again as error:
            raise NodeDied(
                f"the front end left {MAX_QUEUED_MESSAGES} messages unread; it is hung or gone"
            ) from error

    def close(self) -> None:
        self._socket.close()
        self._context.term()
