"""What follows when a process dies or hangs: it is started again, unless that is in vain."""

import logging
from collections.abc import Callable
from time import monotonic

from megainfer.errors import NodeDied
from megainfer.messages.from_child import Fatal
from megainfer.messages.message import Message, Role
from megainfer.messages.to_child import NodeDown
from megainfer.supervise.assembly import Assembly
from megainfer.supervise.child import Child, name_of
from megainfer.supervise.family import Family, drain
from megainfer.supervise.front_ends import FrontEnds
from megainfer.supervise.recovery import Recoveries
from megainfer.supervise.restarts import Restarts
from megainfer.supervise.roster import Node
from megainfer.supervise.staffing import Staffing

logger = logging.getLogger("megainfer")

FIRST_DEATHS = 2
"""How often a node may be killed before its instance has ever served."""


class Deaths:
    """Of one instance's processes. wanted: whether it was asked for that a node's process ends, to
    be started anew. recoveries: those who are on their way back."""

    def __init__(
        self,
        family: Family,
        assembly: Assembly,
        staffing: Staffing,
        front_ends: FrontEnds,
        restarts: Restarts,
        wanted: Callable[[Node], bool],
    ) -> None:
        self._family = family
        self._assembly = assembly
        self._staffing = staffing
        self._front_ends = front_ends
        self._restarts = restarts
        self._wanted = wanted
        self.recoveries = Recoveries()

    def give_up(self, child: Child, reason: str) -> None:
        """Kill one that hangs; `mourn` follows."""
        if child.given_up is None:
            logger.warning("%s (process %d) hangs: %s; killing it", child.name, child.pid, reason)
            child.given_up = f"hung: {reason}"
        child.kill()

    def given_up(self, down: NodeDown) -> None:
        """A front end can't work with it."""
        child = self._family.find(down.role, down.node)
        if child is not None and child.incarnation == down.incarnation:
            self.give_up(child, down.message)

    def mourn(self, child: Child) -> None:
        """One is dead. It is started again, unless that is in vain: then raises NodeDied."""
        for rank in child.ranks:
            for message in drain(rank):
                note_last(rank, message)
        node, cause = (child.role, child.node), child.death()
        obituary = f"{child.name} (process {child.pid}) died: {cause}"
        child.forget()
        if not self._staffing.ended(child):
            self._part(node)
            return
        if self._wanted(node):
            logger.info("%s is started anew", child.name)
            self._lose(child, "it is started anew")
            return
        if self._would_do_so_again(child):
            raise NodeDied(obituary)
        self.recoveries.died(node, cause)
        if (pause := self._pause(node, obituary)) is None:
            self._part(node)
            return
        logger.warning("%s; it is started again", obituary)
        self._staffing.postpone(node, pause)
        if child.role is Role.SERVER:
            self._front_ends.died(child, cause)
        else:
            self._lose(child, cause)

    def _pause(self, node: Node, obituary: str) -> float | None:
        """Seconds until it is started again; None where the others go on without it for good.

        A host's loss is no failure of its nodes, which wait for it: they aren't given up for it.
        Raises NodeDied where nobody can go on.
        """
        away = not self._staffing.can_start(node)
        pause = 0.0 if away else self._restarts.died(node, monotonic())
        if pause is None and self._assembly.can_do_without(node):
            self._assembly.refuse(f"{obituary}, as often as it was started")
            return None
        if pause is None or not (away or self._may_still_start(node)):
            again, window = self.recoveries.restarts[node] - 1, self._restarts.window
            raise NodeDied(f"{obituary}; it was started again {again} times within {window:g} s")
        return pause

    def _lose(self, child: Child, cause: str) -> None:
        """Say that a node isn't there, and have those end who can't go on without it."""
        self._front_ends.lost(child, cause)
        for other in self._assembly.died((child.role, child.node)):
            if (living := self._family.find(*other)) is not None:
                living.given_up = f"{child.name} died while they measured each other"
                living.kill()

    def _part(self, node: Node) -> None:
        """A node that nobody needs has ended."""
        logger.info("%s has left", name_of(*node))
        self._assembly.died(node)
        self._front_ends.gone(node)

    def _would_do_so_again(self, child: Child) -> bool:
        """It has failed by its own words before the instance ever served. Those who measure each
        other fail where only one does."""
        return (
            child.failed_by_itself and not self._assembly.started and not self._assembly.measuring
        )

    def _may_still_start(self, node: Node) -> bool:
        return self._assembly.started or self.recoveries.restarts[node] <= FIRST_DEATHS


def note_last(child: Child, message: Message) -> None:
    """Its last words, if these are."""
    if isinstance(message, Fatal):
        child.fatal = child.fatal or message.message
        child.befell = message.befell
