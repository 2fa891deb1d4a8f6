"""An assembly of nodes that do at once what they are told, and what asks it for changes."""

from pathlib import Path
from typing import Any

from megainfer.checkpoint.vault import WeightVault
from megainfer.config import EngineConfig
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.messages.from_child import (
    Connected,
    Entered,
    Loaded,
    Met,
    Opened,
    Prepared,
    Ready,
)
from megainfer.messages.message import Message, Role
from megainfer.messages.to_child import (
    Enter,
    Measure,
    Meet,
    Prepare,
    Resized,
    Serve,
    Start,
    WeightsUpdated,
)
from megainfer.supervise.assembly import Assembly
from megainfer.supervise.operations import Operations
from megainfer.supervise.roster import Node
from megainfer.supervise.weight_updates import WeightUpdates
from megainfer.topology import Membership

QUIET_TURNS = 4  # of the supervisor, after which nothing is to be expected any more
A0, A1, A2 = ((Role.ATTENTION, node) for node in range(3))
E0, E1, E2 = ((Role.EXPERT, node) for node in range(3))


def two_of_each(folder: Path) -> Plan:
    """The plan of a model for 2 attention and 2 expert nodes."""
    config = EngineConfig(str(folder), attn_gpus=2, ffn_gpus=2, micro_batches=2)
    return make_plan(config, folder, read_machine())


class Instance:
    """An assembly, and nodes that do at once what they are told unless they are `slow`."""

    def __init__(self, plan: Plan) -> None:
        self.now = 0.0
        self.sent: list[tuple[Node, Message]] = []
        self.announced: list[Membership] = []
        self.slow: set[type[Message]] = set()  # what nobody reacts to for now
        self.assembly = Assembly(plan, self._send, self.announced.append, lambda: self.now)
        self.incarnations: dict[Node, int] = {}
        self.dismissed: list[Node] = []
        self.answers: list[Resized] = []
        self.operations = Operations(plan, self.assembly, self._dismiss, lambda: self.now)
        self.updates: list[WeightsUpdated] = []
        self.updating = WeightUpdates(
            plan, self.assembly, WeightVault(), lambda: self.operations.is_free, lambda: self.now
        )
        self._said: list[tuple[Node, Any]] = []

    def fork(self, *nodes: Node) -> None:
        for node in nodes:
            incarnation = self.incarnations.get(node, -1) + 1
            self.incarnations[node] = incarnation
            self.assembly.forked(node, incarnation)
            self._said.append((node, Loaded()))

    def run(self) -> None:
        """Until nobody has anything to say."""
        quiet = 0
        while quiet < QUIET_TURNS:
            self.operations.advance()
            self.updating.advance()
            self.assembly.advance()
            quiet = 0 if self._said else quiet + 1
            said, self._said = self._said, []
            for node, message in said:
                if self.assembly.roster.is_alive(node):
                    self.assembly.hear(node, message)

    def told(self, kind: type[Message], clear: bool = True) -> list[Node]:
        """Who was told such a message since the last question."""
        found = [node for node, message in self.sent if type(message) is kind]
        if clear:
            self.sent.clear()
        return found

    @property
    def members(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        membership = self.assembly.membership
        return None if membership is None else (membership.attention, membership.experts)

    @property
    def epoch(self) -> int:
        assert self.assembly.membership is not None
        return self.assembly.membership.epoch

    def say(self, node: Node, message: Any) -> None:
        """A node says this, of itself."""
        self._said.append((node, message))

    def _dismiss(self, node: Node) -> bool:
        if node not in self.dismissed:
            self.dismissed.append(node)
        return self.assembly.roster.is_alive(node)

    def _send(self, node: Node, message: Message) -> None:
        self.sent.append((node, message))
        if type(message) in self.slow:
            return
        match message:
            case Start():
                self._said.append((node, Opened()))
            case Meet(expert=expert, incarnation=incarnation):
                self._said.append((node, Met(expert, incarnation)))
            case Measure():
                self._said.append((node, Connected([(1, 1e-4)])))
            case Serve():
                self._said.append((node, Ready()))
            case Prepare(ticket=ticket):
                self._said.append((node, Prepared(ticket)))
            case Enter(membership=membership):
                self._said.append((node, Entered(membership.epoch)))


def started(plan: Plan) -> Instance:
    """All four are members."""
    instance = Instance(plan)
    instance.fork(*instance.assembly.wanted)
    instance.run()
    assert instance.members == ((0, 1), (0, 1))
    instance.sent.clear()
    instance.announced.clear()
    return instance
