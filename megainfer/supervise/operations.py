"""What an operator asks for while it serves: other numbers of nodes, or nodes started anew.

One operation at a time. Each is a row of steps; the supervisor asks for progress after every turn.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from megainfer.errors import ConfigError, RequestError
from megainfer.launch.plan import Plan
from megainfer.messages.from_child import Release, Renew, Resize
from megainfer.messages.message import Role
from megainfer.messages.to_child import Resized
from megainfer.supervise.assembly import Assembly
from megainfer.supervise.child import name_of
from megainfer.supervise.roster import Node

logger = logging.getLogger("megainfer")

Wish = Resize | Release | Renew
Answer = Callable[[Resized], None]
RENEW_SECONDS = 600.0
"""How long one node may take to come back, which may have to load its weights from a disk."""


class Operations:
    """end: has the process of a node end, and is called until it has; whether there is one."""

    def __init__(
        self,
        plan: Plan,
        assembly: Assembly,
        end: Callable[[Node], bool],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._plan = plan
        self._assembly = assembly
        self._end = end
        self._clock = clock
        self._current: _Operation | None = None

    def begin(self, wish: Wish, answer: Answer) -> None:
        """Do it; `answer` is told when it is done, or at once why it can't be."""
        operation = _Operation(wish.ticket, answer, self._clock())
        try:
            self._assembly.refusal = None  # of something earlier
            if self._current is not None:
                raise RequestError("another change of nodes is under way; try again after it")
            if self._assembly.renewing:
                raise RequestError("other weights are on their way; try again after them")
            if not self._assembly.started:
                raise RequestError("the instance is still starting; try again when it serves")
            self._check_colocated()
            self._set_out(wish, operation)
        except (RequestError, ConfigError) as error:
            self._tell(operation, str(error))
        else:
            self._current = operation

    @property
    def is_free(self) -> bool:
        """Whether no change of nodes is under way."""
        return self._current is None

    def advance(self) -> None:
        """See how far it is."""
        operation = self._current
        if operation is None:
            return
        if operation.node is not None:
            self._renew(operation, operation.node)
        elif operation.renewals:
            operation.node = operation.renewals.popleft()
            operation.began_node = self._clock()
            self._assembly.resting.add(operation.node)
        elif self._assembly.refusal is not None or self._assembly.complete:
            self._current = None
            self._tell(operation, self._assembly.refusal)

    def ended(self, node: Node) -> bool:
        """A process has ended; whether that was wanted."""
        operation = self._current
        if operation is None or operation.ended != node:
            return False
        operation.ended, operation.awaited, operation.epoch = None, True, self._epoch()
        self._assembly.resting.discard(node)
        return True

    def _check_colocated(self) -> None:
        if self._plan.config.colocated:
            raise RequestError("a colocated instance is one process; there are no nodes to change")

    def _set_out(self, wish: Wish, operation: "_Operation") -> None:
        attention, experts = self._wanted(Role.ATTENTION), self._wanted(Role.EXPERT)
        match wish:
            case Resize():
                most = self._plan.most_attention, self._plan.most_expert
                attention = _as_many("attn", attention, wish.attention, most[0])
                experts = _as_many("ffn", experts, wish.experts, most[1])
                self._assembly.resize(attention, experts)
            case Release(role=role, node=node):
                self._check_known(role, node)
                own = attention if role is Role.ATTENTION else experts
                left = tuple(n for n in own if n != node)
                if not left:
                    raise RequestError(f"{name_of(role, node)} is the last of its role; it stays")
                is_attention = role is Role.ATTENTION
                self._assembly.resize(
                    left if is_attention else attention, experts if is_attention else left
                )
            case Renew(role=None):
                operation.renewals.extend(self._assembly.wanted)
            case Renew(role=Role() as role, node=node):
                self._check_known(role, node if node is not None else -1)
                operation.renewals.append((role, node if node is not None else -1))

    def _wanted(self, role: Role) -> tuple[int, ...]:
        return tuple(node for r, node in self._assembly.wanted if r is role)

    def _check_known(self, role: Role, node: int) -> None:
        if (role, node) not in self._assembly.wanted:
            names = ", ".join(name_of(*known) for known in self._assembly.wanted)
            raise RequestError(f"there is no {name_of(role, node)}; there are: {names}")

    def _renew(self, operation: "_Operation", node: Node) -> None:
        """First it leaves the others, where they can do without; then it ends; then it is back."""
        if self._clock() - operation.began_node > RENEW_SECONDS:
            self._current = None
            self._assembly.resting.discard(node)
            self._tell(operation, f"{name_of(*node)} was not back after {RENEW_SECONDS:g} s")
        elif operation.awaited:
            if node in self._assembly.members() and self._epoch() > operation.epoch:
                operation.node, operation.awaited = None, False
        else:
            operation.ended = node
            if not self._end(node):
                self.ended(node)  # it is dead just now: whoever takes its place is new

    def _epoch(self) -> int:
        membership = self._assembly.membership
        return 0 if membership is None else membership.epoch

    def _tell(self, operation: "_Operation", error: str | None) -> None:
        seconds = self._clock() - operation.began
        attention, experts = self._wanted(Role.ATTENTION), self._wanted(Role.EXPERT)
        if error is None:
            logger.info(
                "%d attention and %d expert nodes serve, as asked %.2f s ago",
                *(len(attention), len(experts), seconds),
            )
        operation.answer(Resized(operation.ticket, list(attention), list(experts), seconds, error))


class _Operation:
    """renewals: the nodes still to be started anew. node: the one that is just now; ended: it has
    been told to end; awaited: it has, in this epoch, and is to come back in a later one."""

    def __init__(self, ticket: int, answer: Answer, began: float) -> None:
        self.ticket = ticket
        self.answer = answer
        self.began = began
        self.renewals: deque[Node] = deque()
        self.node: Node | None = None
        self.began_node = began
        self.ended: Node | None = None
        self.awaited = False
        self.epoch = 0


def _as_many(flag: str, nodes: Sequence[int], count: int | None, most: int) -> tuple[int, ...]:
    """So many of a role: those with the highest numbers go, the lowest that are free come."""
    if count is None:
        return tuple(nodes)
    if not 1 <= count <= most:
        raise RequestError(
            f"--{flag} must be 1 to {most}, not {count}; --max-{flag}-gpus at the start of the "
            "server sets how many there may be"
        )
    free = [node for node in range(most) if node not in nodes]
    return tuple(sorted([*nodes[:count], *free[: max(0, count - len(nodes))]]))
