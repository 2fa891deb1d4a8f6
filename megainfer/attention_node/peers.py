"""The expert nodes that an attention node has met, and what the supervisor hears of them."""

import logging
from collections.abc import Sequence
from functools import partial

from megainfer.launch.control import ParentLink
from megainfer.m2n.mailbox import JoiningPort
from megainfer.m2n.roads import Road
from megainfer.messages.from_child import LinkLost, Met
from megainfer.messages.to_child import Meet

log = logging.getLogger(__name__)

MEET_SECONDS = 30.0


class Peers:
    """Meets expert nodes when told to, and tells of connections that end. node: this one."""

    def __init__(self, link: ParentLink, port: JoiningPort, road: Road, node: int = 0) -> None:
        self._link = link
        self._port = port
        self._road, self._node = road, node
        self._roads: dict[int, str] = {}  # expert node -> what it was last to be met by
        self._asked: dict[int, int] = {}  # expert node -> the incarnation that was last to be met
        self._present: dict[int, int] = {}  # the same, of this epoch
        self._lost: frozenset[int] = frozenset()  # that was told, and isn't back

    def meet(self, message: Meet) -> None:
        """See `messages.Meet`; Met is said by the thread that meets."""
        expert, incarnation = message.expert, message.incarnation
        self._asked[expert] = incarnation
        self._roads[expert] = way = self._road.to(message.address)
        log.info("attention node %d meets expert node %d over %s", self._node, expert, way)
        told = partial(self._link.send, Met(expert, incarnation))
        self._port.meet(expert, incarnation, MEET_SECONDS, told, message.address)

    def enter(self) -> None:
        """Another epoch has begun: whoever was met is there. Who isn't back is no news."""
        self._present = dict(self._asked)
        self._lost &= self._port.lost_peers()

    def roads(self) -> dict[str, list[int]]:
        """The expert nodes of this epoch, by the road that leads there."""
        found: dict[str, list[int]] = {}
        for expert in sorted(self._present):
            found.setdefault(self._roads[expert], []).append(expert)
        return found

    def news(self) -> Sequence[LinkLost]:
        """The connections that have ended since the last call."""
        lost = self._port.lost_peers()
        if lost == self._lost:
            return ()
        new = sorted(lost - self._lost)
        self._lost = lost
        return [LinkLost(expert, self._present.get(expert, 0)) for expert in new]
