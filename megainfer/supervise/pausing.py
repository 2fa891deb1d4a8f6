"""Generation stands still and goes on, as front ends ask for."""

from collections.abc import Callable
from time import monotonic

from megainfer.errors import RequestError
from megainfer.messages.message import Message
from megainfer.messages.pausing import PauseMode, PauseSet, SetPause
from megainfer.supervise.roster import Node

PAUSE_SECONDS = 3600.0
"""How long a pause may take to come about: requests may be waited for."""


class Pausing:
    """One wish at a time: every attention node is told, and whoever asked is when all are so.

    nodes: the attention nodes that answer. send: says something to a node. announce: says to every
    front end how it is.
    """

    def __init__(
        self,
        nodes: Callable[[], list[Node]],
        send: Callable[[Node, Message], None],
        announce: Callable[[PauseSet], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._nodes = nodes
        self._send = send
        self._announce = announce
        self._clock = clock
        self._wish: SetPause | None = None  # the latest
        self._waiting: set[Node] = set()  # who hasn't said that it is so
        self._answer: Callable[[PauseSet], None] | None = None
        self._began = 0.0

    @property
    def paused(self) -> bool:
        """Whether a pause was asked for, and no end of it."""
        return self._wish is not None and self._wish.mode is not None

    def begin(self, wish: SetPause, answer: Callable[[PauseSet], None]) -> None:
        """Do it; `answer` is told when it is done. An end of the pause takes the place of a pause
        that hasn't come about; anything else has to wait."""
        if self._answer is not None and wish.mode is not None:
            error = RequestError("another pause is coming about; end it or wait for it")
            answer(PauseSet(wish.ticket, self.paused, str(error)))
            return
        self._end("the pause was ended before it came about")
        self._wish, self._answer, self._began = wish, answer, self._clock()
        self._waiting = set(self._nodes())
        for node in sorted(self._waiting):
            self._send(node, wish)

    def hear(self, node: Node, told: PauseSet) -> None:
        """A node is so."""
        if self._wish is not None and told.ticket == self._wish.ticket:
            self._waiting.discard(node)

    def ready(self, node: Node) -> None:
        """One more is there, which keeps what it is given."""
        if self._wish is not None and self.paused:
            self._send(node, SetPause(self._wish.ticket, PauseMode.KEEP))

    def advance(self) -> None:
        """See how far it is."""
        if self._answer is None:
            return
        self._waiting &= set(self._nodes())
        if not self._waiting:
            self._end(None)
        elif self._clock() - self._began > PAUSE_SECONDS:
            self._end(f"it has not come about within {PAUSE_SECONDS:g} s")

    def _end(self, error: str | None) -> None:
        if self._answer is None or self._wish is None:
            return
        answer, self._answer = self._answer, None
        self._announce(PauseSet(None, self.paused))
        answer(PauseSet(self._wish.ticket, self.paused, error))
