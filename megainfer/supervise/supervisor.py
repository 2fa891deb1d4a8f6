"""The supervisor: starts the processes of an instance, watches them, ends them.

`megainfer serve` is one; an offline `LLM` runs one in a process of its own. It is single-threaded
and computes nothing, so that nodes can be forked from it at any time.
"""

import logging
import select
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import NoReturn, Protocol, TypeVar

from megainfer.errors import MegaInferError, NodeDied
from megainfer.instruments.startup_clock import StartupClock
from megainfer.launch.control import ParentLink
from megainfer.launch.plan import Plan
from megainfer.messages import (
    Connected,
    Drain,
    Drained,
    Enter,
    Fatal,
    FromChild,
    GetSpans,
    GetStats,
    KeepSpans,
    LinkLost,
    Loaded,
    LoadProgress,
    Met,
    NodeDown,
    Ready,
    Role,
    Serve,
    Spans,
    Start,
    Started,
    Stats,
    Stop,
)
from megainfer.planner.micro_batches import choose_micro_batches
from megainfer.planner.stage_profile import explain, slowest_profile
from megainfer.supervise.child import Child, ChildMain, Closable, fork_child
from megainfer.supervise.libraries import load_libraries
from megainfer.topology import first_membership

logger = logging.getLogger("megainfer")

CONNECTED_TIMEOUT_SECONDS = 60.0
READY_TIMEOUT_SECONDS = 60.0
MAX_SIGNALS = 64  # that came in the meantime
SERVER_STOP_SECONDS = 8.0
NODE_STOP_SECONDS = 5.0
KILL_SECONDS = 10.0
FORWARD_SECONDS = 1.0
"""How long the supervisor waits for the API server to read what a node was asked for."""


Kind = TypeVar("Kind", Loaded, Connected, Ready)


class Observer(Protocol):
    """Who is told how the start goes: the terminal, or the process that wants an `LLM`."""

    def stage(self, text: str) -> None: ...

    def loading(self, name: str, done: int, total: int) -> None: ...

    def ready(self, micro_batches: int, startup: Mapping[str, float]) -> None:
        """startup: seconds of each stage."""

    def ended(self, error: str | None) -> None:
        """It ends, at whatever stage: because of `error`, or because it was told to."""


class Interrupted(Exception):
    """Ctrl-C, a termination signal, or the owner asked for the end."""


class Terminated(Interrupted):
    """A termination signal: what serves may finish what it has begun."""


class Supervisor:
    """One instance's processes.

    server: what the API server's process runs, None without one. held: what only the server may
    keep open (the listening socket). owner: the link to a process that this one works for.
    drain_seconds: how long admitted requests may take to finish after a termination signal; Ctrl-C,
    or a second signal, ends them at once. startup: times the stages; whoever does something before
    `run` adds it.
    """

    def __init__(
        self,
        plan: Plan,
        observer: Observer,
        server: ChildMain | None = None,
        held: Sequence[Closable] = (),
        owner: ParentLink | None = None,
        drain_seconds: float = 0.0,
    ) -> None:
        self.plan = plan
        self._observer = observer
        self._server_main = server
        self._held = tuple(held)
        self._owner = owner
        self._drain_seconds = drain_seconds
        self.startup = StartupClock()
        self.membership = first_membership(plan.num_attention, plan.placement)
        self._children: list[Child] = []
        self._wakeup, self._signals = socket.socketpair()
        self._tickets: dict[int, list[Stats]] = {}  # the answers so far

    def run(self) -> int:
        """Start, serve until told to end, and end; the exit status of the process."""
        self._listen_to_signals()
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
        self._fork_server()
        self._enter("libraries", "loading libraries")
        load_libraries()
        self._hear(monotonic())  # the end may have been asked for: then no node need be forked
        self._fork_nodes()
        self._enter("weights", "loading weights")
        loaded = [(c.role, m) for c, m in self._await_all(Loaded, self._nodes(), None)]
        self._enter("connecting", "connecting")
        self._tell_nodes(Start(self.plan.most_micro_batches, self.membership))
        met = list(self._await_all(Connected, self._nodes(), CONNECTED_TIMEOUT_SECONDS))
        serve = self._agree(loaded, [m for c, m in met if c.role is Role.ATTENTION])
        self._tell_nodes(serve)
        everyone = self._children
        for _ in self._await_all(Ready, everyone, READY_TIMEOUT_SECONDS):
            pass
        self.startup.end()
        for server in self._servers():
            server.send(Started(seconds=self.startup.seconds))
        self._observer.ready(serve.first or serve.micro_batches, self.startup.seconds)

    def _tell_nodes(self, message: Start | Serve) -> None:
        for child in self._nodes():
            child.send(message)

    def _enter(self, stage: str, text: str) -> None:
        self.startup.begin(stage)
        self._observer.stage(text)

    def _fork_server(self) -> None:
        if self._server_main is not None:
            # Before torch is imported: the API server does without.
            self._fork(Role.SERVER, 0, self._server_main)
        for held in self._held:
            held.close()

    def _fork_nodes(self) -> None:
        # Both roles' code is imported before the fork, so that each node starts with it in memory.
        from megainfer.attention_node.process import run_attention
        from megainfer.colocated.process import run_colocated
        from megainfer.expert_node.process import run_expert

        plan = self.plan
        if plan.config.colocated:
            self._fork(Role.ATTENTION, 0, partial(run_colocated, plan=plan))
            return
        for node in range(plan.num_attention):
            self._fork(Role.ATTENTION, node, partial(run_attention, plan=plan, node=node))
        for node in range(plan.num_expert):
            self._fork(Role.EXPERT, node, partial(run_expert, plan=plan, node=node))

    def _fork(self, role: Role, node: int, main: ChildMain) -> None:
        cores = None
        if role is Role.ATTENTION:
            cores = self.plan.cores_of_attention(node)
        elif role is Role.EXPERT:
            cores = self.plan.cores_of_expert(node)
        close: list[Closable] = [child.link for child in self._children]
        close += [self._wakeup, self._signals]
        if role is not Role.SERVER:
            close += self._held
        if self._owner is not None:
            close.append(self._owner)
        self._children.append(fork_child(role, node, main, cores, close))

    def _agree(
        self, loaded: Sequence[tuple[Role, Loaded]], connected: Sequence[Connected]
    ) -> Serve:
        """On the user's m, or on one that was chosen from measured stage times: for good where
        several attention nodes have to agree, else to begin with. connected: of these."""
        fixed = self.plan.micro_batches
        if fixed is not None:
            return Serve(micro_batches=fixed)
        config = self.plan.config
        batch = min(config.max_num_seqs, config.max_num_batched_tokens)
        most = self.plan.most_micro_batches
        profile = slowest_profile(loaded, connected, self.plan.spin_seconds)
        choice = choose_micro_batches(profile, batch, most)
        logger.info(explain(choice))
        if self.plan.num_attention > 1:
            return Serve(micro_batches=choice.micro_batches)
        return Serve(micro_batches=most, first=choice.micro_batches)

    # --- listening ----------------------------------------------------------------------------

    def _await_all(
        self, kind: type[Kind], children: Sequence[Child], timeout: float | None
    ) -> Iterator[tuple[Child, Kind]]:
        """(child, message) of each of `children`, as they say a `kind`; NodeDied past the bound."""
        missing = {child.name for child in children}
        deadline = None if timeout is None else monotonic() + timeout
        while missing:
            for child, message in self._hear(deadline):
                if isinstance(message, kind):
                    missing.discard(child.name)
                    yield child, message
            if deadline is not None and monotonic() > deadline and missing:
                raise NodeDied(f"{', '.join(sorted(missing))} did not answer within {timeout:g} s")

    def _hear(self, deadline: float | None) -> list[tuple[Child, FromChild]]:
        """What children said until something was said; raises for deaths and interrupts."""
        ready = self._poll(deadline)
        heard: list[tuple[Child, FromChild]] = []
        for child in self._children:
            if child.link.fileno() in ready:
                heard += [(child, message) for message in _drain(child)]
        for child, message in heard:
            self._note(child, message)
        dead = [child for child in self._children if child.pidfd in ready]
        if dead:
            raise NodeDied(self._describe_death(dead))
        return heard

    def _poll(self, deadline: float | None) -> set[int]:
        """Readable file descriptors; raises Interrupted when the end was asked for."""
        poller = select.poll()
        watched = [self._wakeup.fileno()]
        for child in self._children:
            watched += [child.link.fileno(), child.pidfd]
        if self._owner is not None:
            watched.append(self._owner.fileno())
        for fd in watched:
            poller.register(fd, select.POLLIN)
        timeout = None if deadline is None else max(0.0, deadline - monotonic()) * 1000
        ready = {fd for fd, _ in poller.poll(timeout)}
        if self._wakeup.fileno() in ready:
            signals = set(self._wakeup.recv(MAX_SIGNALS))
            raise Terminated if signals == {signal.SIGTERM} else Interrupted
        if self._owner is not None and self._owner.fileno() in ready:
            self._hear_owner(self._owner)
        return ready

    def _note(self, child: Child, message: FromChild) -> None:
        match message:
            case LoadProgress():
                self._observer.loading(child.name, message.done, message.total)
            case Stats():
                self._hear_stats(message)
            case Spans():
                self._report(message)
            case GetStats() | GetSpans() | KeepSpans():
                self._ask_nodes(message)
            case Fatal():
                child.fatal = message.message
            case NodeDown():
                self._give_up(message)
            case Loaded() | Connected() | Met() | LinkLost() | Enter() | Ready() | Drained():
                pass

    def _give_up(self, down: NodeDown) -> None:
        """A front end can't use this node: it is killed, and dies as any other."""
        for child in self._nodes():
            if (child.role, child.node) == (down.role, down.node):
                child.fatal = child.fatal or down.message
                child.kill()

    def _describe_death(self, dead: list[Child]) -> str:
        """Who died first: one that a signal killed comes before those that noticed its absence."""
        for child in dead:
            child.reap(timeout=1.0)
            for message in _drain(child):
                self._note(child, message)
        first = min(dead, key=lambda child: child.exit_code or 0)
        for server in self._servers():
            server.send(NodeDown(role=first.role, node=first.node, message=first.death()))
        return f"{first.name} (process {first.pid}) died: {first.death()}"

    # --- serving ------------------------------------------------------------------------------

    def _watch(self) -> NoReturn:
        try:
            while True:
                self._hear(None)
        except Terminated:
            self._drain()
            raise

    def _drain(self) -> None:
        """Until the API server says that nobody is left, or time is up, or another signal comes."""
        servers = self._servers()
        if not servers or self._drain_seconds <= 0:
            return
        self._observer.stage(f"draining: requests may finish within {self._drain_seconds:g} s")
        deadline = monotonic() + self._drain_seconds
        for server in servers:
            server.send(Drain())
        while monotonic() < deadline:
            if any(isinstance(message, Drained) for _, message in self._hear(deadline)):
                return

    def _hear_owner(self, owner: ParentLink) -> None:
        try:
            message = owner.receive(timeout=0)
        except NodeDied as error:
            raise Interrupted from error
        if isinstance(message, Stop):
            raise Interrupted
        if isinstance(message, NodeDown):
            self._give_up(message)
        if isinstance(message, GetStats):
            self._tickets[message.ticket] = []
        if isinstance(message, GetStats | KeepSpans | GetSpans):
            self._ask_nodes(message)

    def _ask_nodes(self, message: GetStats | KeepSpans | GetSpans) -> None:
        for child in self._nodes():
            child.offer(message)  # one that hangs may not hear it; the others do

    def _hear_stats(self, stats: Stats) -> None:
        if self._owner is not None and stats.ticket is not None:
            self._collect(self._owner, stats.ticket, stats)
        elif self._owner is None:
            self._report(stats)

    def _report(self, message: Stats | Spans) -> None:
        """To whoever asked: the owner, or else the API server, unless that doesn't listen."""
        if self._owner is not None:
            self._owner.send(message)
        for server in self._servers():
            server.offer(message, 0.0 if isinstance(message, Stats) else FORWARD_SECONDS)

    def _collect(self, owner: ParentLink, ticket: int, stats: Stats) -> None:
        """Pass the nodes' counters on to the owner once all have answered."""
        answers = self._tickets.get(ticket)
        if answers is None:
            return
        answers.append(stats)
        if len(answers) == len(self._nodes()):
            del self._tickets[ticket]
            counters = {name: own for answer in answers for name, own in answer.counters.items()}
            owner.send(Stats(ticket, counters))

    def _nodes(self) -> list[Child]:
        return [child for child in self._children if child.role is not Role.SERVER]

    def _servers(self) -> list[Child]:
        return [child for child in self._children if child.role is Role.SERVER]

    # --- ending -------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        self._wakeup.setblocking(False)
        self._signals.setblocking(False)
        signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        # An owner decides what Ctrl-C in its terminal means.
        signal.signal(signal.SIGINT, signal.SIG_IGN if self._owner else lambda *_: None)

    def _stop(self) -> None:
        """In order: the API server lets its clients know, then attention nodes, then experts."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, lambda *_: self._kill_all())
        if self._owner is None:
            signal.signal(signal.SIGINT, lambda *_: self._kill_all())
        for role, seconds in (
            (Role.SERVER, SERVER_STOP_SECONDS),
            (Role.ATTENTION, NODE_STOP_SECONDS),
            (Role.EXPERT, NODE_STOP_SECONDS),
        ):
            self._end([child for child in self._children if child.role is role], seconds)
        for child in self._children:
            child.link.close()
        self._wakeup.close()
        self._signals.close()

    def _end(self, children: list[Child], seconds: float) -> None:
        for child in children:
            child.send(Stop())
        deadline = monotonic() + seconds
        for child in children:
            if not child.reap(max(0.0, deadline - monotonic())):
                logger.warning("%s did not end within %g s; killing it", child.name, seconds)
                child.kill()
                child.reap(KILL_SECONDS)

    def _kill_all(self) -> None:
        for child in self._children:
            child.kill()


def _drain(child: Child) -> Iterator[FromChild]:
    """Everything that the child has said; nothing more once it is gone."""
    with suppress(NodeDied):
        while (message := child.link.receive(timeout=0)) is not None:
            yield message
