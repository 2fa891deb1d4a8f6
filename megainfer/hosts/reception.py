"""Where agents join, seen from the supervisor: who has, and who is there.

No threads and nothing that blocks: the supervisor polls `filenos` and calls `attend` often.
"""

import logging
import re
import select
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic

import msgspec

from megainfer import __version__
from megainfer.errors import ConfigError, MegaInferError, NodeDied
from megainfer.hosts.launcher import Launcher
from megainfer.hosts.listening import Address, listen
from megainfer.hosts.strangers import Strangers
from megainfer.hosts.wire import Wire
from megainfer.launch.hosts.places import Host, check_gpus
from megainfer.launch.machine import Machine
from megainfer.messages.hosts import (
    Dismissed,
    FromAgent,
    Join,
    Joined,
    Peer,
    Refused,
    from_agent_decoder,
)
from megainfer.tls.peers import PeerTls

log = logging.getLogger(__name__)

LEASE_SECONDS = 5.0
PATIENCE_SECONDS = 300.0
AWAY_SECONDS = 2.0
"""An agent that was silent for so long is given no new node, though it isn't lost yet."""
_NAME = re.compile(r"[\w.-]{1,64}")
"""It goes before each line that a node there logs."""
_LOOK_SECONDS = 0.2
_END_SECONDS = 1.0
_LAUNCHER_END_SECONDS = 15.0
"""More than an agent gives its nodes."""

AgentWire = Wire[FromAgent]


@dataclass(slots=True)
class _Agent:
    host: Host
    listens_at: Address
    wire: AgentWire


class Reception:
    """Of one instance. token: what agents have to prove that they have; tls: and by what both
    show certificates, where they are to. lease: seconds of silence
    after which one counts as lost, and its nodes with it. patience: seconds for which a start waits
    for one that is lost. `move_after`: seconds after which nodes of one that is lost are moved.
    `load_from_peer`: whether a host that lacks weights may have those of another.
    `launcher`: who has the agents started, where somebody has."""

    launcher: Launcher | None = None

    def __init__(
        self,
        strangers: Strangers[FromAgent],
        token: bytes,
        lease: float,
        patience: float,
        tls: PeerTls | None = None,
    ) -> None:
        self._strangers = strangers
        self.token = token
        self.tls = tls
        self.lease = lease
        self.patience = patience
        self.move_after = inf
        self.load_from_peer = False
        self._agents: dict[str, _Agent] = {}
        self._lost: dict[str, tuple[float, str]] = {}  # when and why, of those that aren't back

    @classmethod
    def open(
        cls,
        address: Address,
        token: bytes,
        lease: float = LEASE_SECONDS,
        patience: float = PATIENCE_SECONDS,
        tls: PeerTls | None = None,
    ) -> "Reception":
        """Raises ConfigError where nobody can listen there."""
        listening = listen(address, "--listen-agents")
        strangers = Strangers(listening, token, from_agent_decoder, "an agent", lease, tls)
        return cls(strangers, token, lease, patience, tls)

    @property
    def address(self) -> Address:
        return self._strangers.address

    def filenos(self) -> list[int]:
        """To be polled for reading."""
        agents = [agent.wire.fileno() for agent in self._agents.values()]
        if self.launcher is not None:
            agents.append(self.launcher.fileno())
        return [*self._strangers.filenos(), *agents]

    def attend(self) -> None:
        """Let in who came, hear everybody, and notice who is lost; never blocks. Raises NodeDied
        where the launcher has ended."""
        if self.launcher is not None:
            self.launcher.check()
        for wire, (first, *_) in self._strangers.heard():
            if isinstance(first, Join):
                self._join(wire, first)
            else:
                log.warning("%s began with %s, not Join", wire.name, type(first).__name__)
                wire.close()
        for name, agent in list(self._agents.items()):
            try:
                agent.wire.pump()
            except MegaInferError as error:
                log.warning("host %s is lost: %s", name, error)
                self._lost[name] = monotonic(), str(error)
                agent.wire.close()
                del self._agents[name]

    def gather(self, count: int, seconds: float, told: Callable[[str], None]) -> tuple[Host, ...]:
        """Wait until so many agents have joined; the hosts, in that order. told: hears of each.

        Raises NodeDied when they haven't within so many seconds, or the launcher has ended.
        """
        deadline = monotonic() + seconds
        known: set[str] = set()
        while True:
            self.attend()
            for name in self._agents.keys() - known:
                host = self._agents[name].host
                told(f"host {name} has joined ({host.address}, {host.describe()})")
            known = set(self._agents)
            if len(self._agents) >= count:
                return tuple(agent.host for agent in self._agents.values())
            if monotonic() > deadline:
                there = f" ({', '.join(sorted(known))})" if known else ""
                raise NodeDied(
                    f"{len(known)} of {count} agents{there} joined {self.address} "
                    f"within {seconds:g} s; {self._remedy}"
                )
            poller = select.poll()
            for descriptor in self.filenos():
                poller.register(descriptor, select.POLLIN)
            poller.poll(_LOOK_SECONDS * 1000)

    @property
    def _remedy(self) -> str:
        """Against agents that don't join."""
        if self.launcher is None:
            return "start `megainfer agent` on the others, or use a smaller --agents"
        return "what the others say is in their own output; --agents-timeout waits longer"

    def is_there(self, name: str) -> bool:
        """Whether a node can be started on this host now."""
        agent = self._agents.get(name)
        return agent is not None and agent.wire.silence < AWAY_SECONDS

    def check_back(self, name: str) -> None:
        """Raises NodeDied where this host has been lost for longer than a start waits."""
        since, why = self._lost.get(name, (inf, ""))
        if monotonic() - since > self.patience:
            raise NodeDied(
                f"host {name} is lost ({why}) and not back within {self.patience:g} s; start its "
                "agent again, or use a larger --agents-timeout"
            )

    def stays_away(self, name: str) -> bool:
        """Whether this host was lost so long ago that its nodes are to be moved."""
        since, _ = self._lost.get(name, (inf, ""))
        return monotonic() - since > self.move_after

    def hosts(self) -> list[Host]:
        """Those on which nodes can be started now."""
        return [agent.host for name, agent in self._agents.items() if self.is_there(name)]

    def listens_at(self, name: str) -> Address:
        """Where the agent of a host that is there takes nodes."""
        return self._agents[name].listens_at

    def peers(self, name: str) -> tuple[Peer, ...]:
        """The other hosts that are there."""
        return tuple(
            Peer(other, *agent.listens_at)
            for other, agent in self._agents.items()
            if other != name and self.is_there(other)
        )

    def dismiss(self) -> None:
        """The instance ends: tell all agents, for a moment, and close."""
        deadline = monotonic() + _END_SECONDS
        wires = [agent.wire for agent in self._agents.values()]
        for wire in wires:
            with suppress(MegaInferError):
                wire.send(Dismissed())
                while wire.pending and monotonic() < deadline:
                    wire.pump()
        if self.launcher is not None:
            self.launcher.end(_LAUNCHER_END_SECONDS)
        self.close()

    def close(self) -> None:
        """In a child: hold nothing of it."""
        if self.launcher is not None:
            self.launcher.close()
        self._strangers.close()
        for agent in self._agents.values():
            agent.wire.close()
        self._agents = {}

    def _join(self, wire: AgentWire, join: Join) -> None:
        reason, host = self._why_not(join), None
        if reason is None:
            try:
                machine = msgspec.msgpack.decode(join.machine, type=Machine)
                host = Host(join.name, join.address, machine, join.gpus)
                check_gpus(host)
            except msgspec.MsgspecError as error:
                reason = f"its machine can't be read: {error}"
            except ConfigError as error:
                reason, host = str(error), None
        if host is None:
            log.warning("refused host %.80r (%s): %s", join.name, wire.name, reason)
            with suppress(NodeDied):
                wire.send(Refused(reason or ""))
            wire.close()
            return
        wire.name = f"host {join.name}"
        if (before := self._agents.pop(join.name, None)) is not None:
            before.wire.close()
        self._agents[join.name] = _Agent(host, Address(join.address, join.port), wire)
        if self._lost.pop(join.name, None) is not None:
            log.warning("host %s is back, at %s", join.name, join.address)
        with suppress(NodeDied):  # noticed by the next look
            wire.send(Joined())

    def _why_not(self, join: Join) -> str | None:
        if _NAME.fullmatch(join.name) is None:
            return f"--name is of letters, digits and ._- (64 at most), not {join.name!r:.80}"
        if join.version != __version__:
            return f"it runs MegaInfer {join.version}, and the supervisor {__version__}"
        if self.is_there(join.name):
            return f"there is a host {join.name} already; call this one otherwise by --name"
        return None
