"""The agent of a host: joins a supervisor, and forks an attendant for each node that it asks for.

It is single-threaded and computes nothing, so that attendants, and nodes from these, can be forked
at any time with all code in memory.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import NamedTuple, NoReturn

import msgspec

from megainfer import __version__
from megainfer.agent.attendant import Ground, run_attendant
from megainfer.errors import ConfigError, MegaInferError, NodeDied
from megainfer.helper_frames import die_with
from megainfer.hosts.listening import Address, listen
from megainfer.hosts.reception import LEASE_SECONDS
from megainfer.hosts.strangers import Strangers
from megainfer.hosts.wire import Wire, poll
from megainfer.launch.hosts.places import Host, check_gpus
from megainfer.launch.machine import read_machine
from megainfer.messages.hosts import (
    Dismissed,
    Join,
    Joined,
    Refused,
    StartNode,
    StartRank,
    ToAgent,
    ToAttendant,
    to_agent_decoder,
    to_attendant_decoder,
)
from megainfer.messages.message import Role
from megainfer.supervise.child import fork_process
from megainfer.supervise.forking.libraries import load_libraries
from megainfer.supervise.signals import Interrupted, Signals, Terminated

log = logging.getLogger("megainfer")

PATIENCE_SECONDS = 60.0
"""Of silence, after which the supervisor counts as lost to the agent. Longer than a node's lease,
which its attendant keeps: one that is busy for long before nodes exist loses no agent."""
UNANSWERED_SECONDS = 5.0
"""Until bytes that no kernel has acknowledged show that it is the network that is gone."""
MOST_ATTENDANTS = 256
CONNECT_SECONDS = 2.0
RETRY_SECONDS = 0.5
END_SECONDS = 10.0
_LOOK_SECONDS = 0.5


class Attended(NamedTuple):
    """Whom an attendant attends to: a node by its first rank, or another rank."""

    role: Role
    node: int
    rank: int

    @property
    def name(self) -> str:
        return f"{self.role} node {self.node}" + (f" rank {self.rank}" if self.rank else "")


@dataclass(frozen=True, slots=True)
class AgentWish:
    """join: where the supervisor listens for agents. name: of this host. host, port: where this
    agent listens for stand-ins; port 0: any. join_seconds: how long it tries, at the start and when
    the supervisor is lost. memory: bytes that nodes here may have, None: what is available.
    drain_seconds: how long, after SIGTERM, it goes on for an instance that is ending, too. gpus: as
    `launch.hosts.places.Host` has them."""

    join: Address
    name: str
    port: int
    join_seconds: float
    ground: Ground
    memory: int | None = None
    drain_seconds: float = 0.0
    gpus: tuple[int, ...] | None = None


class Agent:
    """Of one host. told: hears, in words, how it goes."""

    def __init__(self, wish: AgentWish, told: Callable[[str], None]) -> None:
        self._wish = wish
        self._told = told
        listening = listen(Address(wish.ground.address, wish.port), "--host")
        token = wish.ground.token
        self._strangers = Strangers(
            listening, token, to_attendant_decoder, "somebody", LEASE_SECONDS, wish.ground.tls
        )
        self._signals = Signals(in_terminal=True)
        self._wire: Wire[ToAgent] | None = None
        self._joined = False
        self._deadline = monotonic() + wish.join_seconds  # for joining
        self._next_try = 0.0
        self._end_at: float | None = None  # once SIGTERM has come
        self._attendants: dict[int, Attended | None] = {}  # by process id

    def run(self) -> int:
        """Until it is dismissed or told to end; the exit status. Raises ConfigError where it is
        refused, NodeDied where there is no supervisor for too long."""
        self._signals.listen()
        self._join()  # what it can't offer is said before anybody is looked for
        load_libraries()
        import megainfer.attention_node.process
        import megainfer.expert_node.process  # noqa: F401

        self._deadline = monotonic() + self._wish.join_seconds
        try:
            while self._turn():
                pass
        except Interrupted:
            self._told("Stopping.")
        finally:
            self._end()
        return 0

    def _turn(self) -> bool:
        """Whether it goes on."""
        if self._wire is None:
            self._try_to_join()
        goes_on = self._hear_supervisor()
        self._take_in()
        self._reap()
        wires = [] if self._wire is None else [self._wire]
        ready = poll(wires, _LOOK_SECONDS, self._signals.fileno(), *self._strangers.filenos())
        if self._signals.fileno() in ready:
            self._heed_signals()
        if self._end_at is not None and (not self._joined or monotonic() > self._end_at):
            raise Interrupted
        return goes_on

    def _heed_signals(self) -> None:
        """Raises Interrupted. Whoever ends all hosts at once, ends those first whose requests are
        still answered by these nodes: SIGTERM leaves them some time."""
        try:
            self._signals.heed()
        except Terminated:
            if self._end_at is not None or self._wish.drain_seconds <= 0:
                raise
            self._end_at = monotonic() + self._wish.drain_seconds
            self._told("ending with the instance, or within the --drain-timeout")

    # --- the supervisor -----------------------------------------------------------------------

    def _try_to_join(self) -> None:
        now, where = monotonic(), self._wish.join
        if now < self._next_try:
            return
        self._next_try = now + RETRY_SECONDS
        try:
            connection = socket.create_connection(self._wish.join, timeout=CONNECT_SECONDS)
        except OSError as error:
            if now > self._deadline:
                seconds = self._wish.join_seconds
                raise NodeDied(
                    f"no supervisor at {where} within {seconds:g} s ({error}); start `megainfer "
                    "serve --agents` there, or use a larger --join-timeout"
                ) from error
            return
        name = f"the supervisor at {where}"
        ground = self._wish.ground
        wire = Wire(
            *(connection, ground.token, to_agent_decoder, name, True),
            *(PATIENCE_SECONDS, UNANSWERED_SECONDS, ground.tls),
        )
        wire.send(self._join())
        self._wire = wire

    def _join(self) -> Join:
        machine = read_machine()
        if self._wish.memory is not None:
            available = min(self._wish.memory, machine.available_memory)
            machine = replace(machine, available_memory=available)
        name, gpus = self._wish.name, self._wish.gpus
        check_gpus(Host(name, self._wish.ground.address, machine, gpus))
        encoded = msgspec.msgpack.encode(machine)
        return Join(name, __version__, *self._strangers.address, encoded, gpus)

    def _hear_supervisor(self) -> bool:
        """Whether it goes on. Raises ConfigError."""
        if self._wire is None:
            return True
        try:
            said = self._wire.pump()
        except NodeDied as error:
            self._lose(str(error))
            return True
        except MegaInferError as error:  # another token, another version: it stays so
            raise ConfigError(str(error)) from error
        for message in said:
            match message:
                case Joined():
                    self._joined = True
                    self._told(f"joined as host {self._wish.name}; Ctrl-C ends it and its nodes")
                case Refused(reason=reason):
                    raise ConfigError(f"{self._wire.name} refuses this host: {reason}")
                case Dismissed():
                    self._told("the instance has ended")
                    return False
        return True

    def _lose(self, reason: str) -> None:
        """Nodes have leases of their own."""
        if self._joined:
            log.warning("%s; joining anew", reason)
            self._deadline = monotonic() + self._wish.join_seconds
        elif monotonic() > self._deadline:
            raise NodeDied(reason)
        self._joined = False
        if self._wire is not None:
            self._wire.close()
        self._wire = None

    # --- nodes --------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Who has proved itself has an attendant forked; nobody else has."""
        for wire, said in self._strangers.heard():
            first, node = said[0], None
            if len(self._attendants) >= MOST_ATTENDANTS:
                log.warning("%s is sent away: there are too many already", wire.name)
            else:
                if isinstance(first, StartNode | StartRank):
                    rank = first.rank if isinstance(first, StartRank) else 0
                    node = Attended(first.role, first.node, rank)
                    self._end_earlier(node)
                self._fork(wire, said, node)
            wire.close()

    def _end_earlier(self, node: Attended) -> None:
        """Whoever asks for a node has lost those that it was before, which may not have noticed it
        yet; two at once would need twice the memory."""
        for pid, attended in self._attendants.items():
            if attended == node:
                log.warning("an earlier process of %s is ended: another is wanted", node.name)
                os.kill(pid, signal.SIGKILL)  # and its node with it

    def _fork(
        self,
        wire: Wire[ToAttendant],
        said: Sequence[ToAttendant],
        node: Attended | None,
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        try:
            pid = fork_process()
        except OSError as error:
            log.warning("no node can be started now: %s", error)
            return
        if pid == 0:
            self._attend(wire, said, parent)
        self._attendants[pid] = node

    def _attend(
        self, wire: Wire[ToAttendant], said: Sequence[ToAttendant], parent: int
    ) -> NoReturn:
        """In the attendant's process; never returns into the agent's code."""
        try:
            die_with(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._strangers.close()
            self._signals.close()
            if self._wire is not None:
                self._wire.close()
            run_attendant(wire, said, self._wish.ground)
        except Exception:  # the process boundary: its trace is all that would be left of it
            log.exception("an attendant failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _reap(self) -> None:
        for pid in list(self._attendants):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._attendants[pid]

    def _end(self) -> None:
        """Nodes end with their attendants."""
        for pid in self._attendants:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = monotonic() + END_SECONDS
        while self._attendants and monotonic() < deadline:
            self._reap()
            poll([], 0.05)
        self._strangers.close()
        self._signals.close()
        if self._wire is not None:
            self._wire.close()
