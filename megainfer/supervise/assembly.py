"""From living nodes to a membership: who is told what, until all that can serve together do.

It talks to nodes through what it is given, so it can be tested without any.
"""

import logging
from collections.abc import Callable
from time import monotonic

from msgspec import structs

from megainfer.hosts.givers import Givers
from megainfer.hosts.residences import Residences
from megainfer.launch.plan import Plan
from megainfer.messages.from_child import (
    Connected,
    Entered,
    LinkLost,
    Loaded,
    Met,
    Opened,
    Prepared,
    Ready,
    Stats,
)
from megainfer.messages.message import Message, Role
from megainfer.messages.supervision import FromChild
from megainfer.messages.to_child import Enter, Measure, Meet, Prepare, Serve, Start
from megainfer.messages.weights import OF_FOLDER, WeightFiles
from megainfer.planner.balancing import Balancer
from megainfer.planner.micro_batches import choose_micro_batches
from megainfer.planner.profiles import StageProfile
from megainfer.planner.stage_profile import explain, slowest_profile
from megainfer.supervise.child import name_of
from megainfer.supervise.moves import Holding, Moves
from megainfer.supervise.roster import Node, Pair, Roster, Stage, placement_among
from megainfer.topology import (
    Membership,
    Placement,
    first_membership,
)

logger = logging.getLogger("megainfer")

MEET_SECONDS = 30.0
"""How long an attention node may take to meet an expert node that can be met."""
LINK_SECONDS = 0.2
"""For so long a connection that has ended may only be the first sign of a death."""


class Assembly:
    """The nodes of one instance. send: says something to a node. announce: says to every front end
    who serves now. residences: on which host each node is, None: all are on this one."""

    def __init__(
        self,
        plan: Plan,
        send: Callable[[Node, Message], None],
        announce: Callable[[Membership], None],
        clock: Callable[[], float] = monotonic,
        residences: Residences | None = None,
    ) -> None:
        self._plan = plan
        self._residences = residences
        self._send = send
        self._announce = announce
        self._clock = clock
        self.roster = Roster(alone=plan.config.colocated)
        self.wanted = _nodes_of(plan.num_attention, plan.num_expert, plan.config.colocated)
        self.resting: set[Node] = set()  # wanted, but to be members no more for the moment
        self.membership: Membership | None = None
        self.serve: Serve | None = None  # how, once that is known
        self.profile: StageProfile | None = None  # by which that was chosen, if it was measured
        self.givers = Givers()
        self.balancer = Balancer(plan.spec.moe_layers, plan.spec.num_experts)
        self.refusal: str | None = None  # why the last change that was asked for didn't come about
        self._moves = Moves(Holding(plan.placement, OF_FOLDER), self._tell_ready)
        self._epoch = 0
        self._changed = False  # since the last epoch, in a way that its successor might not show
        self._loaded: dict[Node, Loaded] = {}
        self._measuring = False
        self._addresses: dict[Node, tuple[str, int] | None] = {}  # of expert nodes' ports
        self._connected: dict[Node, Connected] = {}
        self._entered: dict[Node, int] = {}  # the latest epoch of which each has said so
        self._asked_at: dict[Pair, float] = {}
        self._served: set[Node] = set()  # members of any membership so far
        self._lost_at: dict[Pair, float] = {}  # connections that have ended, both nodes being alive

    @property
    def placement(self) -> Placement:
        """Where experts are when all that hold anything by it are there."""
        return self._moves.now.placement

    @property
    def weights(self) -> WeightFiles:
        """What members compute with, and who starts loads."""
        return self._moves.now.weights

    @property
    def started(self) -> bool:
        """Whether it has ever been whole."""
        return self.membership is not None

    @property
    def measuring(self) -> bool:
        """Whether nodes measure each other, so that the end of one is the end of all."""
        return self._measuring and self.serve is None

    @property
    def needed(self) -> list[Node]:
        """Who must live: the wanted, and those whose experts nobody else has yet."""
        if self._plan.config.colocated:
            return self.wanted
        return list(dict.fromkeys((*self.wanted, *_experts_of(self.placement))))

    @property
    def complete(self) -> bool:
        """Whether the wanted, and nobody else, serve, each with the experts that it is to have."""
        alive = all(self.roster.is_alive(node) for node in self.needed)
        return alive and self._moves.current is None and self.members() == set(self.needed)

    @property
    def renewing(self) -> bool:
        """Whether other weights are on their way."""
        return self._moves.current is not None and self._moves.current.renews

    @property
    def in_force(self) -> bool:
        """Whether there is a membership with the present weights, and every member has entered it.
        There is none yet where nodes have lost each other meanwhile."""
        now = self.membership
        if now is None or now.weights != self.weights.version:
            return False
        return all(self._entered.get(node, 0) >= now.epoch for node in self.members())

    def is_ready(self, node: Node) -> bool:
        """Whether its loop goes round, member or not."""
        role, index = node
        return index in self.roster.at(role, Stage.READY)

    def to_load(self, node: int) -> Placement:
        """By which placement an expert node that starts now loads its experts."""
        move = self._moves.current
        if move is not None and node not in self.placement.holders:
            return move.target.placement
        return self.placement

    # --- change of plan -----------------------------------------------------------------------

    def _tell_ready(self, node: Node, prepare: Prepare) -> None:
        if self.is_ready(node):
            self._send(node, structs.replace(prepare, givers=self.givers.for_move(node)))

    def resize(self, attention: tuple[int, ...], experts: tuple[int, ...]) -> None:
        """From now on these nodes are wanted; experts move in the background, and are entered when
        all are where they are to be.

        Raises ConfigError where experts can't be dealt among so many nodes.
        """
        self.refusal = None
        now = tuple(node for role, node in self.wanted if role is Role.EXPERT)
        if experts != now:
            replicas = self._plan.config.expert_replicas
            self.move_to(self.balancer.fresh(experts, replicas, before=self.placement))
        self._want(attention, experts)

    def balance(self) -> None:
        """Have experts moved where that is worth it; only when all is as it is to be."""
        if self.membership is None or not self.complete:
            return
        if (proposal := self.balancer.propose(self.membership)) is not None:
            logger.info("balancing: %s", proposal)
            self.move_to(proposal.placement)

    def move_to(self, placement: Placement) -> None:
        """Have this placement entered as soon as everybody has loaded what it has by it; in place
        of another that was on its way."""
        self._moves.begin(Holding(placement, self.weights), _experts_of(placement))

    def renew(self, weights: WeightFiles) -> None:
        """Have these weights computed with as soon as every node has loaded its own of them. To be
        asked for when all is as it is to be."""
        assert self.complete, "other changes are on their way"
        self.refusal = None
        self._moves.begin(Holding(self.placement, weights), self.needed)

    def keep_weights(self, reason: str) -> None:
        """The weights that were on their way don't come about."""
        logger.warning("weights stay as they are: %s", reason)
        self.refusal = reason
        self._moves.give_up()

    def _prepared(self, node: Node, told: Prepared) -> None:
        renews = self.renewing
        if (error := self._moves.hear(node, told)) is None:
            return
        if renews:
            self.keep_weights(f"{name_of(*node)} {error}")
        else:
            self.refuse(f"experts stay where they are, since {name_of(*node)} {error}")

    def refuse(self, reason: str) -> None:
        """A change of nodes doesn't come about: those are wanted that serve."""
        logger.warning("%s", reason)
        self.refusal = reason
        self._moves.give_up()
        if self.membership is not None:
            self._want(self.membership.attention, tuple(sorted(self.placement.holders)))

    def can_do_without(self, node: Node) -> bool:
        """Whether it was to join those that serve, and never has."""
        role, index = node
        serves = self.membership is not None
        return serves and node not in self._served and index not in self._holders(role)

    def _holders(self, role: Role) -> frozenset[int]:
        return self.placement.holders if role is Role.EXPERT else frozenset()

    def _want(self, attention: tuple[int, ...], experts: tuple[int, ...]) -> None:
        self.wanted = [
            *((Role.ATTENTION, node) for node in attention),
            *((Role.EXPERT, node) for node in experts),
        ]

    # --- whoever is there ---------------------------------------------------------------------

    def forked(self, node: Node, incarnation: int) -> None:
        self.roster.forked(node, incarnation)

    def died(self, node: Node) -> list[Node]:
        """Returns who has to start again with it: all, while they measure each other."""
        self.roster.died(node)
        self._changed = True
        self.givers.died(node, had_loaded=self._loaded.pop(node, None) is not None)
        self._entered.pop(node, None)
        if node[0] is Role.EXPERT:
            self.balancer.forget(node[1])
        self._moves.died(node)
        if self.renewing and self._moves.concerns(node):
            self.keep_weights(f"{name_of(*node)} died while others were loaded")
        self._asked_at = {p: at for p, at in self._asked_at.items() if node not in _both(p)}
        self._lost_at = {p: at for p, at in self._lost_at.items() if node not in _both(p)}
        if not self.measuring:
            return []
        self._measuring = False
        self._connected.clear()
        return [other for other in self.wanted if self.roster.is_alive(other)]

    def hear(self, node: Node, message: FromChild) -> None:
        """What a node says of its own start."""
        match message:
            case Loaded():
                self._loaded[node] = message
                self.givers.loaded(node)
                self.roster.reached(node, Stage.LOADED)
                self._send(node, Start(self._plan.most_micro_batches))
            case Opened(address=address, gives_at=gives_at):
                self._addresses[node] = address
                self.givers.opened(node, gives_at)
                self.roster.reached(node, Stage.OPEN)
                if self.serve is not None:
                    self._send(node, self.serve)
            case Met():
                self.roster.met((node[1], message.expert), message.incarnation)
            case LinkLost():
                self._lose((node[1], message.expert), message.incarnation)
            case Connected():
                self._connected[node] = message
            case Ready():
                self.roster.reached(node, Stage.READY)
                self._moves.ready(node)
            case Prepared():
                self._prepared(node, message)
            case Entered(epoch=epoch):
                self._entered[node] = epoch
            case Stats(counters=counters) if node[0] is Role.EXPERT:
                for told in counters.values():
                    self.balancer.hear(node[1], told)

    def advance(self) -> None:
        """Say whatever can be said by now."""
        for pair in [p for p, at in self._lost_at.items() if self._clock() - at > LINK_SECONDS]:
            self._part(pair)
        for attention, expert in self.roster.to_meet():
            self._asked_at[attention, expert] = self._clock()
            incarnation = self.roster.incarnation((Role.EXPERT, expert))
            address = self._address(attention, expert)
            self._send((Role.ATTENTION, attention), Meet(expert, incarnation, address))
        if self.serve is None:
            self._agree()
        else:
            self._moves.end()
            self._reconcile()

    def _address(self, attention: int, expert: int) -> tuple[str, int] | None:
        """Where one finds the other, unless they are on one host."""
        at = self._residences
        nodes = (Role.ATTENTION, attention), (Role.EXPERT, expert)
        if at is None or at.of(*nodes[0]) == at.of(*nodes[1]):
            return None
        return self._addresses[nodes[1]]

    def late(self) -> list[Pair]:
        """Those who should have met by now."""
        since = self._clock() - MEET_SECONDS
        return [pair for pair in self.roster.not_met() if self._asked_at.get(pair, since) < since]

    def members(self) -> set[Node]:
        """Of the present membership."""
        if self.membership is None:
            return set()
        attention = {(Role.ATTENTION, n) for n in self.membership.attention}
        if self._plan.config.colocated:
            return attention
        return attention | {(Role.EXPERT, n) for n in self.membership.experts}

    def _lose(self, pair: Pair, incarnation: int) -> None:
        expert = (Role.EXPERT, pair[1])
        if self.roster.is_alive(expert) and self.roster.incarnation(expert) == incarnation:
            self._lost_at.setdefault(pair, self._clock())

    def _part(self, pair: Pair) -> None:
        """Both live, but their connection doesn't: they meet again, in another epoch."""
        logger.warning("attention node %d has lost its connection to expert node %d", *pair)
        del self._lost_at[pair]
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
            first = first_membership(self._plan.num_attention, self.placement)
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
        self.profile = slowest_profile(loaded, connected, plan.spin_seconds)
        choice = choose_micro_batches(self.profile, batch, plan.most_micro_batches)
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
        attention, experts = self.roster.together(self.membership, self._candidates())
        placement = placement_among(self.placement, experts) if attention and experts else None
        if placement is None or not self._is_news(attention, experts, placement):
            return
        self._epoch += 1
        self._changed = False
        weights = self.weights.version
        self.membership = Membership(self._epoch, attention, experts, placement, weights)
        self._served |= self.members()
        for node in self.members():
            self._send(node, Enter(self.membership))
        self._announce(self.membership)

    def _candidates(self) -> set[Node]:
        """Who may be a member: expert nodes that hold anything, attention nodes that are wanted."""
        return {*self._attention, *_experts_of(self.placement)} - self.resting

    @property
    def _attention(self) -> list[Node]:
        return [node for node in self.wanted if node[0] is Role.ATTENTION]

    def _is_news(
        self, attention: tuple[int, ...], experts: tuple[int, ...], placement: Placement
    ) -> bool:
        now = self.membership
        if now is None or self._changed:
            return True
        is_moved = (attention, experts, placement) != (now.attention, now.experts, now.placement)
        return is_moved or now.weights != self.weights.version


def _nodes_of(num_attention: int, num_expert: int, colocated: bool) -> list[Node]:
    attention = [(Role.ATTENTION, n) for n in range(num_attention)]
    if colocated:
        return attention
    return [*attention, *((Role.EXPERT, n) for n in range(num_expert))]


def _experts_of(placement: Placement) -> list[Node]:
    """Who holds any by it, ascending."""
    return [(Role.EXPERT, node) for node in sorted(placement.holders)]


def _both(pair: Pair) -> tuple[Node, Node]:
    return (Role.ATTENTION, pair[0]), (Role.EXPERT, pair[1])
