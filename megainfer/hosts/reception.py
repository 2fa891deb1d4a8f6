"""Where agents join, seen from the supervisor: who has, and who is there.

No threads and nothing that blocks: the supervisor polls `filenos` and calls `attend` often.
"""

import logging
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import msgspec

from megainfer import __version__
from megainfer.errors import MegaInferError, NodeDied
from megainfer.hosts.listening import Address, listen
from megainfer.hosts.wire import Wire
from megainfer.launch.hosts.places import Host
from megainfer.launch.machine import Machine
from megainfer.messages.hosts import (
    Dismissed,
    FromAgent,
    Join,
    Joined,
    Refused,
    from_agent_decoder,
)

log = logging.getLogger(__name__)

LEASE_SECONDS = 5.0
AWAY_SECONDS = 2.0
"""An agent that was silent for so long is given no new node, though it isn't lost yet."""
_MOST_STRANGERS = 64
_LOOK_SECONDS = 0.2
_END_SECONDS = 1.0

AgentWire = Wire[FromAgent]


@dataclass(slots=True)
class _Agent:
    host: Host
    listens_at: Address
    wire: AgentWire


class Reception:
    """Of one instance. token: what agents have to prove that they have. lease: seconds of silence
    after which one counts as lost, and its nodes with it."""

    def __init__(self, listening: socket.socket, token: bytes, lease: float) -> None:
        self._listening = listening
        self.token = token
        self.lease = lease
        self._strangers: list[AgentWire] = []
        self._agents: dict[str, _Agent] = {}
        self._lost: dict[str, str] = {}  # why those were that aren't back

    @classmethod
    def open(cls, address: Address, token: bytes, lease: float = LEASE_SECONDS) -> "Reception":
        """Raises ConfigError where nobody can listen there."""
        return cls(listen(address, "--listen-agents"), token, lease)

    @property
    def address(self) -> Address:
        return Address(*self._listening.getsockname()[:2])

    def filenos(self) -> list[int]:
        """To be polled for reading."""
        wires = [*self._strangers, *(agent.wire for agent in self._agents.values())]
        return [self._listening.fileno(), *(wire.fileno() for wire in wires)]

    def attend(self) -> None:
        """Let in who came, hear everybody, and notice who is lost; never blocks."""
        self._accept()
        for wire in list(self._strangers):
            self._hear_stranger(wire)
        for name, agent in list(self._agents.items()):
            try:
                agent.wire.pump()
            except MegaInferError as error:
                log.warning("host %s is lost: %s", name, error)
                self._lost[name] = str(error)
                agent.wire.close()
                del self._agents[name]

    def gather(self, count: int, seconds: float, told: Callable[[str], None]) -> tuple[Host, ...]:
        """Wait until so many agents have joined; the hosts, in that order. told: hears of each.

        Raises NodeDied when they haven't within so many seconds.
        """
        deadline = monotonic() + seconds
        known: set[str] = set()
        while True:
            self.attend()
            for name in self._agents.keys() - known:
                host = self._agents[name].host
                told(f"host {name} has joined ({host.address}, {len(host.machine.cores)} cores)")
            known = set(self._agents)
            if len(self._agents) >= count:
                return tuple(agent.host for agent in self._agents.values())
            if monotonic() > deadline:
                there = f" ({', '.join(sorted(known))})" if known else ""
                raise NodeDied(
                    f"{len(known)} of {count} agents{there} joined {self.address} "
                    f"within {seconds:g} s; start `megainfer agent` on the "
                    "others, or use a smaller --agents"
                )
            poller = select.poll()
            for descriptor in self.filenos():
                poller.register(descriptor, select.POLLIN)
            poller.poll(_LOOK_SECONDS * 1000)

    def is_there(self, name: str) -> bool:
        """Whether a node can be started on this host now."""
        agent = self._agents.get(name)
        return agent is not None and agent.wire.silence < AWAY_SECONDS

    def listens_at(self, name: str) -> Address:
        """Where the agent of a host that is there takes nodes."""
        return self._agents[name].listens_at

    def dismiss(self) -> None:
        """The instance ends: tell all agents, for a moment, and close."""
        deadline = monotonic() + _END_SECONDS
        wires = [agent.wire for agent in self._agents.values()]
        for wire in wires:
            with suppress(MegaInferError):
                wire.send(Dismissed())
                while wire.pending and monotonic() < deadline:
                    wire.pump()
        self.close()

    def close(self) -> None:
        """In a child: hold nothing of it."""
        self._listening.close()
        for wire in (*self._strangers, *(agent.wire for agent in self._agents.values())):
            wire.close()
        self._strangers, self._agents = [], {}

    def _accept(self) -> None:
        """The oldest of too many strangers makes room."""
        while True:
            try:
                connection, (host, port, *_) = self._listening.accept()
            except OSError:  # nobody is there, or has left already, or no descriptor is free
                return
            if len(self._strangers) >= _MOST_STRANGERS:
                self._send_away(self._strangers[0], "there are too many who say nothing")
            name = f"an agent at {host}:{port}"
            self._strangers.append(
                Wire(connection, self.token, from_agent_decoder, name, False, self.lease)
            )

    def _hear_stranger(self, wire: AgentWire) -> None:
        try:
            said = wire.pump()
        except MegaInferError as error:
            self._send_away(wire, str(error))
            return
        for message in said:
            if isinstance(message, Join):
                self._strangers.remove(wire)
                self._join(wire, message)
                return

    def _send_away(self, wire: AgentWire, reason: str) -> None:
        log.warning("nobody joined: %s", reason)
        wire.close()
        self._strangers.remove(wire)

    def _join(self, wire: AgentWire, join: Join) -> None:
        reason, machine = self._why_not(join), None
        if reason is None:
            try:
                machine = msgspec.msgpack.decode(join.machine, type=Machine)
            except msgspec.MsgspecError as error:
                reason = f"its machine can't be read: {error}"
        if machine is None:
            log.warning("refused host %s (%s): %s", join.name, wire.name, reason)
            with suppress(NodeDied):
                wire.send(Refused(reason or ""))
            wire.close()
            return
        wire.name = f"host {join.name}"
        if (before := self._agents.pop(join.name, None)) is not None:
            before.wire.close()
        host = Host(join.name, join.address, machine)
        self._agents[join.name] = _Agent(host, Address(join.address, join.port), wire)
        if self._lost.pop(join.name, None) is not None:
            log.warning("host %s is back", join.name)
        with suppress(NodeDied):  # noticed by the next look
            wire.send(Joined())

    def _why_not(self, join: Join) -> str | None:
        if join.version != __version__:
            return f"it runs MegaInfer {join.version}, and the supervisor {__version__}"
        if self.is_there(join.name):
            return f"there is a host {join.name} already; call this one otherwise by --name"
        return None
