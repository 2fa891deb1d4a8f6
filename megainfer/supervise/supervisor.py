"""The supervisor: starts the processes of an instance, watches them, starts them again, ends them.

`megainfer serve` is one; an offline `LLM` runs one in a process of its own. It is single-threaded
and computes nothing, so that nodes can be forked from it at any time.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import NoReturn, Protocol

from megainfer.checkpoint.pinned import PinnedFiles
from megainfer.checkpoint.vault import WeightVault
from megainfer.errors import ConfigError, MegaInferError, NodeDied
from megainfer.hosts.reception import Reception
from megainfer.hosts.remote import RemoteNodes
from megainfer.hosts.residences import Residences
from megainfer.instruments.startup_clock import StartupClock
from megainfer.launch.control import ParentLink
from megainfer.launch.plan import Plan
from megainfer.messages.from_child import (
    Drained,
    Entered,
    Fatal,
    LoadProgress,
    Opened,
    Ready,
    Release,
    Renew,
    Resize,
    Spans,
    Stats,
    UpdateWeights,
)
from megainfer.messages.message import Message, Role
from megainfer.messages.pausing import PauseSet, SetPause
from megainfer.messages.supervision import FromChild
from megainfer.messages.to_child import GetSpans, GetStats, KeepSpans, NodeDown, Reload, Stop
from megainfer.supervise.assembly import Assembly
from megainfer.supervise.child import Child, Closable, name_of
from megainfer.supervise.deaths import Deaths, note_last
from megainfer.supervise.family import Family
from megainfer.supervise.forking.libraries import load_libraries
from megainfer.supervise.front_ends import FrontEnds
from megainfer.supervise.operations import Operations
from megainfer.supervise.pausing import Pausing
from megainfer.supervise.relay import Relay
from megainfer.supervise.restarts import Restarts
from megainfer.supervise.roster import Node, Stage
from megainfer.supervise.signals import Interrupted, Signals, Terminated
from megainfer.supervise.staffing import ServerMain, Staffing
from megainfer.supervise.vigil import LOOK_SECONDS, Vigil
from megainfer.supervise.weight_updates import WeightUpdates

logger = logging.getLogger("megainfer")

READY_TIMEOUT_SECONDS = 60.0
"""What an API server may take to answer, once all nodes serve."""
SERVER_STOP_SECONDS = 8.0
NODE_STOP_SECONDS = 5.0
FORK_SECONDS = 1.0
"""Until a fork that the machine has refused is tried again."""


class Observer(Protocol):
    """Who is told how the start goes: the terminal, or the process that wants an `LLM`."""

    def stage(self, text: str) -> None: ...

    def loading(self, name: str, done: int, total: int) -> None: ...

    def ready(self, micro_batches: int, startup: Mapping[str, float]) -> None:
        """startup: seconds of each stage."""

    def ended(self, error: str | None) -> None:
        """It ends, at whatever stage: because of `error`, or because it was told to."""


class Supervisor:
    """One instance's processes.

    server: what an API server's process runs, None without one; servers: how many. held: what only
    servers may keep open (the listening sockets). owner: the link to a process that this one works
    for. drain_seconds: how long admitted requests may take to finish after a termination signal;
    Ctrl-C, or a second signal, ends them at once. reread: reads the options again, for SIGHUP.
    reception: where the agents have joined on whose hosts the plan has its nodes.
    startup: times the stages; whoever does something before `run` adds it.
    """

    def __init__(
        self,
        plan: Plan,
        observer: Observer,
        server: ServerMain | None = None,
        held: Sequence[Closable] = (),
        owner: ParentLink | None = None,
        drain_seconds: float = 0.0,
        restarts: Restarts | None = None,
        servers: int = 1,
        reread: Callable[[], Reload] | None = None,
        reception: Reception | None = None,
    ) -> None:
        self.plan = plan
        self._observer = observer
        self._owner = owner
        self._drain_seconds = drain_seconds
        self._reread = reread
        self.startup = StartupClock()
        self._signals = Signals(in_terminal=owner is None)
        vault = WeightVault()
        others = [other for other in (owner, reception) if other is not None]
        own: list[Closable] = [self._signals, vault, *others]
        self._family = Family(plan, own, held)
        self._relay = Relay(self._family, owner, self._is_ready)
        self._front_ends = FrontEnds(self._family, owner, self._to_attention)
        residences = None if plan.places is None else Residences(plan.places, plan.devices)
        self._assembly = Assembly(plan, self._send, self._front_ends.enter, residences=residences)
        self._vigil = Vigil()
        self._pinned = PinnedFiles(plan.folder) if plan.config.pin_weights else None
        self._next_look = self._next_balance = 0.0
        self._reception = reception
        remote = None
        if reception is not None and residences is not None:
            remote = RemoteNodes(plan, reception, residences)
        self._staffing = Staffing(plan, self._family, self._assembly, server, servers, remote)
        self._operations = Operations(plan, self._assembly, self._staffing.dismiss)
        self._deaths = Deaths(
            self._family,
            self._assembly,
            self._staffing,
            self._front_ends,
            restarts or Restarts(),
            self._operations.ended,
        )
        self._weights = WeightUpdates(plan, self._assembly, vault, lambda: self._operations.is_free)
        self._pausing = Pausing(self._ready_attention, self._send, self._front_ends.pause)
        self._all_forked = False  # once: whoever is missing from then on has died
        self._started = False

    def run(self) -> int:
        """Start, serve until told to end, and end; the exit status of the process."""
        self._signals.listen()
        try:
            self._start()
            self._watch()
        except Interrupted:
            self._observer.ended(None)
            return 0
        except MegaInferError as error:
            self._observer.ended(str(error))
            return 1
        finally:
            self._stop()

    # --- starting -----------------------------------------------------------------------------

    def _start(self) -> None:
        for node in self._staffing.servers:
            self._fork(node)  # before torch is imported: the API server does without
        if self._reception is None:  # else agents have them
            self._enter("libraries", "loading libraries")
            load_libraries()
        self._turn(0.0)  # the end may have been asked for: then no node need be forked
        for node in filter(self._staffing.can_start, self._assembly.wanted):
            self._fork(node)
        self._all_forked = True
        self._enter("weights", "loading weights")
        self._until(lambda: self._all_nodes(Stage.LOADED))
        self._enter("connecting", "connecting")
        self._until(lambda: self._assembly.started)
        self._until(self._servers_answer, READY_TIMEOUT_SECONDS)
        self.startup.end()
        self._started = True
        self._front_ends.started(self.startup.seconds, self._assembly.profile)
        serve = self._assembly.serve
        assert serve is not None, "it has started"
        self._observer.ready(serve.first or serve.micro_batches, self.startup.seconds)

    def _until(self, reached: Callable[[], bool], timeout: float | None = None) -> None:
        deadline = None if timeout is None else monotonic() + timeout
        while not reached():
            self._turn()
            self._staffing.check_hosts()  # else nobody would end the wait for one that is gone
            if deadline is not None and monotonic() > deadline:
                raise NodeDied(f"the API server did not answer within {timeout:g} s")

    def _enter(self, stage: str, text: str) -> None:
        self.startup.begin(stage)
        self._observer.stage(text)

    def _all_nodes(self, stage: Stage) -> bool:
        roster = self._assembly.roster
        everybody = all(roster.is_alive(node) for node in self._assembly.wanted)
        return everybody and roster.all_reached(stage)

    def _servers_answer(self) -> bool:
        return len(self._front_ends.ready) == len(self._staffing.servers)

    def _fork(self, node: Node) -> None:
        try:
            child = self._staffing.start(node)
        except OSError as error:  # no process, descriptor or memory to be had just now
            if not self._started:
                raise NodeDied(f"{name_of(*node)} can't be started: {error}") from error
            logger.warning("%s can't be started now: %s", name_of(*node), error)
            self._staffing.postpone(node, FORK_SECONDS)
            return
        self._deaths.recoveries.step(node, "forked")
        self._front_ends.returns(node)
        if child.role is Role.SERVER:
            self._front_ends.forked(child)

    # --- a turn -------------------------------------------------------------------------------

    def _turn(self, timeout: float = LOOK_SECONDS) -> list[tuple[Child, FromChild]]:
        """Hear what is said within `timeout`, and do what follows; returns what was said."""
        ready = self._poll(timeout)
        heard = list(self._family.heard(ready))
        for child, message in heard:
            self._note(child, message)
        for child in self._family.buried(ready):
            self._deaths.mourn(child)
            self._next_look = 0.0
        self._operations.advance()
        self._weights.advance()
        self._pausing.advance()
        self._balance()
        if (now := monotonic()) >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._look_after()
        self._assembly.advance()
        self._front_ends.chronicle()
        return heard

    def _poll(self, timeout: float) -> set[int]:
        """Readable file descriptors; raises Interrupted when the end was asked for."""
        others = [self._signals.fileno()]
        if self._owner is not None:
            others.append(self._owner.fileno())
        if self._reception is not None:
            others += self._reception.filenos()
        ready = self._family.poll(timeout, others)
        if self._signals.fileno() in ready and self._signals.heed():
            self._reload()
        if self._owner is not None and self._owner.fileno() in ready:
            self._hear_owner(self._owner)
        if self._reception is not None:
            self._reception.attend()
        return ready

    def _reload(self) -> None:
        """Read the options anew, and have API servers obey those that can change."""
        if self._reread is None:
            return
        try:
            reload = self._reread()
        except MegaInferError as error:
            logger.error("nothing is changed, since the options can't be read again: %s", error)
            return
        self._front_ends.reload(reload)
        logger.info("keys and limits were read again")

    def _note(self, child: Child, message: FromChild) -> None:
        node = (child.role, child.node)
        match message:
            case LoadProgress(stage="weights", done=done, total=total):
                self._observer.loading(child.name, done, total)
            case LoadProgress(stage=stage, done=done, total=total):
                self._observer.stage(f"{child.name}: {stage}, {done} of {total}")
            case Stats():
                self._assembly.hear(node, message)
                self._relay.tell(message)
            case Spans():
                self._relay.tell(message)
            case GetStats() | GetSpans() | KeepSpans():
                self._relay.ask(message)
            case Fatal():
                note_last(child, message)
            case Drained():
                pass
            case NodeDown():
                self._deaths.given_up(message)
            case Resize() | Release() | Renew():
                self._operations.begin(message, child.send)
            case UpdateWeights():
                self._weights.begin(message, child.send)
            case SetPause():
                self._pausing.begin(message, child.send)
            case PauseSet():
                self._pausing.hear(node, message)
            case Opened() if child.role is Role.SERVER:
                self._front_ends.opened(child)
            case Ready() if child.role is Role.SERVER:
                self._front_ends.answers(child)
                self._deaths.recoveries.back(node)
            case Entered():
                self._assembly.hear(node, message)
                self._entered(node, message.epoch)
            case _:
                if isinstance(message, Ready) and child.role is Role.ATTENTION:
                    self._pausing.ready(node)  # before requests can reach it
                    self._front_ends.introduce(child)
                self._deaths.recoveries.step(node, type(message).__name__.lower())
                self._assembly.hear(node, message)

    def _look_after(self) -> None:
        """Fork who is to be forked, end whom nobody needs, and give up who hangs."""
        if self._started:
            for node, host in self._staffing.move():
                logger.warning(
                    "%s is started on host %s: its own stays away, or has no GPU for it",
                    name_of(*node),
                    host,
                )
                self._front_ends.moved(node, host)
        if self._all_forked:
            for node in self._staffing.missing():
                self._fork(node)
        self._staffing.dismiss_the_unneeded()
        self._pin()
        for child, reason in self._vigil.look(self._family.processes):
            self._deaths.give_up(child, reason)
        for attention, expert in self._assembly.late():
            if (late := self._family.find(Role.ATTENTION, attention)) is not None:
                self._deaths.give_up(late, f"it has not met expert node {expert}")

    def _balance(self) -> None:
        every = self.plan.config.rebalance
        if every is not None and self._started and monotonic() >= self._next_balance:
            self._next_balance = monotonic() + every
            self._assembly.balance()

    def _pin(self) -> None:
        """A piece of the weights at a time, once all have loaded them."""
        if self._pinned is None or self._pinned.done or not self._started:
            return
        try:
            self._pinned.step()
        except (ConfigError, OSError) as error:
            logger.warning("%s", error)
            self._pinned.done = True

    # --- talking ------------------------------------------------------------------------------

    def _entered(self, node: Node, epoch: int) -> None:
        self._front_ends.back(node)
        self._deaths.recoveries.everybody(f"{node[0]} node {node[1]} in epoch {epoch}")
        self._deaths.recoveries.back(node)

    def _send(self, node: Node, message: Message) -> None:
        if (child := self._family.find(*node)) is not None:
            child.send(message)

    def _is_ready(self, child: Child) -> bool:
        return self._assembly.is_ready((child.role, child.node))

    def _to_attention(self, message: Message) -> None:
        for node in self._ready_attention():
            self._send(node, message)

    def _ready_attention(self) -> list[Node]:
        ready = self._assembly.roster.at(Role.ATTENTION, Stage.READY)
        return [(Role.ATTENTION, node) for node in ready]

    # --- serving ------------------------------------------------------------------------------

    def _watch(self) -> NoReturn:
        try:
            while True:
                self._turn()
        except Terminated:
            self._drain()
            raise

    def _drain(self) -> None:
        """Until API servers say that nobody is left, or time is up, or another signal comes. One
        that dies has nobody left."""
        servers = self._family.of(Role.SERVER)
        if not servers or self._drain_seconds <= 0:
            return
        self._observer.stage(f"draining: requests may finish within {self._drain_seconds:g} s")
        deadline = monotonic() + self._drain_seconds
        self._front_ends.drain()
        missing = {server.pid for server in servers}
        while monotonic() < deadline and missing:
            drained = {c.pid for c, message in self._turn() if isinstance(message, Drained)}
            missing = (missing - drained) & {c.pid for c in self._family.of(Role.SERVER)}

    def _hear_owner(self, owner: ParentLink) -> None:
        try:
            message = owner.receive(timeout=0)
        except NodeDied as error:
            raise Interrupted from error
        if isinstance(message, Stop):
            raise Interrupted
        if isinstance(message, NodeDown):
            self._deaths.given_up(message)
        if isinstance(message, GetStats | KeepSpans | GetSpans):
            self._relay.ask(message)
        if isinstance(message, UpdateWeights):
            self._weights.begin(message, owner.send)
        if isinstance(message, SetPause):
            self._pausing.begin(message, owner.send)

    # --- ending -------------------------------------------------------------------------------

    def _stop(self) -> None:
        """In order: the API server lets its clients know, then attention nodes, then experts."""
        self._signals.only(self._family.kill_all)
        self._family.end(Role.SERVER, SERVER_STOP_SECONDS)
        self._family.end(Role.ATTENTION, NODE_STOP_SECONDS)
        self._family.end(Role.EXPERT, NODE_STOP_SECONDS)
        self._family.close()
        if self._reception is not None:
            self._reception.dismiss()
        self._signals.close()
