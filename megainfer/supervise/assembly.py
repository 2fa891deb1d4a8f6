"""From living nodes to a membership: who is told what, until all that can serve together do.

It talks to nodes through what it is given, so it can be tested without any.
"""

import logging
from collections.abc import Callable
from time import monotonic

from megainfer.launch.plan import Plan
from megainfer.messages import (
    Connected,
    Enter,
    FromChild,
    LinkLost,
    Loaded,
    Measure,
    Meet,
    Message,
    Met,
    Opened,
    Ready,
    Role,
    Serve,
    Start,
)
from megainfer.planner.micro_batches import choose_micro_batches
from megainfer.planner.stage_profile import explain, slowest_profile
from megainfer.supervise.roster import Node, Pair, Roster, Stage, placement_among
from megainfer.topology import Membership, Placement, first_membership

logger = logging.getLogger("megainfer")

MEET_SECONDS = 10.0
"""How long an attention node may take to meet an expert node that can be met."""


class Assembly:
    """The nodes of one instance. send: says something to a node. announce: says something to every
    front end."""

    def __init__(
        self,
        plan: Plan,
        send: Callable[[Node, Message], None],
        announce: Callable[[Message], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._plan = plan
        self._send = send
        self._announce = announce
        self._clock = clock
        self.roster = Roster(alone=plan.config.colocated)
        self.wanted = _nodes_of(plan)
        self.membership: Membership | None = None
        self.serve: Serve | None = None  # how, once that is known
        self._placement = plan.placement
        self._epoch = 0
        self._changed = False  # since the last epoch, in a way that its successor might not show
        self._loaded: dict[Node, Loaded] = {}
        self._measuring = False
        self._connected: dict[Node, Connected] = {}
        self._asked_at: dict[Pair, float] = {}

    @property
    def started(self) -> bool:
        """Whether it has ever been whole."""
        return self.membership is not None

    @property
    def lacking(self) -> list[Node]:
        """Those of the wanted that are no members now, as far as they are needed."""
        members = self._members()
        return [node for node in self.wanted if node not in members]

    def forked(self, node: Node, incarnation: int) -> None:
        self.roster.forked(node, incarnation)

    def died(self, node: Node) -> list[Node]:
        """Returns who has to start again with it: all, while they measure each other."""
        self.roster.died(node)
        self._changed = True
        self._loaded.pop(node, None)
        self._asked_at = {p: at for p, at in self._asked_at.items() if node not in _both(p)}
        if not self._measuring or self.serve is not None:
            return []
        self._measuring = False
        self._connected.clear()
        return [other for other in self.wanted if self.roster.is_alive(other)]

    def hear(self, node: Node, message: FromChild) -> None:
        """What a node says of its own start."""
        match message:
            case Loaded():
                self._loaded[node] = message
                self.roster.reached(node, Stage.LOADED)
                self._send(node, Start(self._plan.most_micro_batches))
            case Opened():
                self.roster.reached(node, Stage.OPEN)
                if self.serve is not None:
                    self._send(node, self.serve)
            case Met():
                self.roster.met((node[1], message.expert), message.incarnation)
            case LinkLost():
                self._parted((node[1], message.expert), message.incarnation)
            case Connected():
                self._connected[node] = message
            case Ready():
                self.roster.reached(node, Stage.READY)

    def advance(self) -> None:
        """Say whatever can be said by now."""
        for attention, expert in self.roster.to_meet():
            self._asked_at[attention, expert] = self._clock()
            incarnation = self.roster.incarnation((Role.EXPERT, expert))
            self._send((Role.ATTENTION, attention), Meet(expert, incarnation))
        if self.serve is None:
            self._agree()
        else:
            self._reconcile()

    def late(self) -> list[Pair]:
        """Those who should have met by now."""
        since = self._clock() - MEET_SECONDS
        return [pair for pair in self.roster.not_met() if self._asked_at.get(pair, since) < since]

    def _members(self) -> set[Node]:
        if self.membership is None:
            return set()
        attention = {(Role.ATTENTION, n) for n in self.membership.attention}
        if self._plan.config.colocated:
            return attention
        return attention | {(Role.EXPERT, n) for n in self.membership.experts}

    def _parted(self, pair: Pair, incarnation: int) -> None:
        """Both live, but their connection doesn't: they meet again, in another epoch."""
        expert = (Role.EXPERT, pair[1])
        if self.roster.is_alive(expert) and self.roster.incarnation(expert) == incarnation:
            logger.warning("attention node %d has lost its connection to expert node %d", *pair)
            self.roster.parted(pair)
            self._changed = True

    # --- how to serve -------------------------------------------------------------------------

    def _agree(self) -> None:
        """On m, once everybody is there: the user's, or one that was measured."""
        everybody = all(self.roster.is_alive(node) for node in self.wanted)
        if not (everybody and self.roster.all_reached(Stage.OPEN) and self.roster.all_met()):
            return
        if not self._plan.measures:
            assert self._plan.micro_batches is not None
            self._say(Serve(micro_batches=self._plan.micro_batches))
        elif not self._measuring:
            self._measuring = True
            self._epoch += 1
            first = first_membership(self._plan.num_attention, self._placement)
            for node in self.wanted:
                self._send(node, Measure(first))
        elif len(self._connected) == len(self.wanted):
            self._say(self._chosen())

    def _chosen(self) -> Serve:
        """From stage times and transfers: for good where several attention nodes have to agree,
        else to begin with."""
        plan, config = self._plan, self._plan.config
        batch = min(config.max_num_seqs, config.max_num_batched_tokens)
        loaded = [(role, told) for (role, _), told in self._loaded.items()]
        connected = [c for (role, _), c in self._connected.items() if role is Role.ATTENTION]
        profile = slowest_profile(loaded, connected, plan.spin_seconds)
        choice = choose_micro_batches(profile, batch, plan.most_micro_batches)
        logger.info(explain(choice))
        if plan.num_attention > 1:
            return Serve(micro_batches=choice.micro_batches)
        return Serve(micro_batches=plan.most_micro_batches, first=choice.micro_batches)

    def _say(self, serve: Serve) -> None:
        self.serve = serve
        for node in self.wanted:
            self._send(node, serve)

    # --- who serves ---------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Enter another membership if a better one is possible than the present."""
        if self.membership is None and not self.roster.all_reached(Stage.READY):
            return
        attention, experts = self.roster.together(self.membership)
        placement = placement_among(self._placement, experts) if attention and experts else None
        if placement is None or not self._is_news(attention, experts, placement):
            return
        self._epoch += 1
        self._changed = False
        self.membership = Membership(self._epoch, attention, experts, placement)
        for node in self._members():
            self._send(node, Enter(self.membership))
        self._announce(Enter(self.membership))

    def _is_news(
        self, attention: tuple[int, ...], experts: tuple[int, ...], placement: Placement
    ) -> bool:
        now = self.membership
        if now is None or self._changed:
            return True
        return (attention, experts, placement) != (now.attention, now.experts, now.placement)


def _nodes_of(plan: Plan) -> list[Node]:
    attention = [(Role.ATTENTION, n) for n in range(plan.num_attention)]
    if plan.config.colocated:
        return attention
    return [*attention, *((Role.EXPERT, n) for n in range(plan.num_expert))]


def _both(pair: Pair) -> tuple[Node, Node]:
    return (Role.ATTENTION, pair[0]), (Role.EXPERT, pair[1])
