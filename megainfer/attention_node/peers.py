"""The expert nodes that an attention node has met, and what the supervisor hears of them."""

from collections.abc import Sequence
from functools import partial

from megainfer.launch.control import ParentLink
from megainfer.m2n.mailbox import JoiningPort
from megainfer.messages.from_child import LinkLost, Met
from megainfer.messages.to_child import Meet

MEET_SECONDS = 30.0


class Peers:
    """Meets expert nodes when told to, and tells of connections that end."""

    def __init__(self, link: ParentLink, port: JoiningPort) -> None:
        self._link = link
        self._port = port
        self._asked: dict[int, int] = {}  # expert node -> the incarnation that was last to be met
        self._present: dict[int, int] = {}  # the same, of this epoch
        self._lost: frozenset[int] = frozenset()  # that was told, and isn't back

    def meet(self, message: Meet) -> None:
        """See `messages.Meet`; Met is said by the thread that meets."""
        expert, incarnation = message.expert, message.incarnation
        self._asked[expert] = incarnation
        told = partial(self._link.send, Met(expert, incarnation))
        self._port.meet(expert, incarnation, MEET_SECONDS, told, message.address)

    def enter(self) -> None:
        """Another epoch has begun: whoever was met is there. Who isn't back is no news."""
        self._present = dict(self._asked)
        self._lost &= self._port.lost_peers()

    def news(self) -> Sequence[LinkLost]:
        """The connections that have ended since the last call."""
        lost = self._port.lost_peers()
        if lost == self._lost:
            return ()
        new = sorted(lost - self._lost)
        self._lost = lost
        return [LinkLost(expert, self._present.get(expert, 0)) for expert in new]
