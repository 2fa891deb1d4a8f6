"""One child process of the supervisor: forking it, watching it, ending it."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from megainfer.errors import MegaInferError, NodeDied, UnsafeFork, shortage
from megainfer.helper_frames import die_with
from megainfer.launch.control import ChildLink, ParentLink, link_pair
from megainfer.launch.heartbeat import Page, begin_to_beat
from megainfer.launch.machine import read_sockets
from megainfer.launch.station import Station
from megainfer.messages.from_child import Fatal
from megainfer.messages.message import Message, Role
from megainfer.native.memory_policy import prefer_memory
from megainfer.topology import CoreAssignment


class Closable(Protocol):
    def close(self) -> None: ...


ChildMain = Callable[[Station], None]
SEND_SECONDS = 1.0


@dataclass
class Child:
    """A running (or ended) child. `fatal` is the last thing that a failing child said, and
    `befell` whether that was done to it; `given_up` why the supervisor has killed it.

    incarnation: how many processes this node has been before. rank: which of the node's processes,
    where there are several. others: of rank 0, which speaks for the node, the other ranks: they
    live and end with it. fell: which of all ranks ended first.
    """

    role: Role
    node: int
    pid: int
    pidfd: int
    link: ChildLink
    page: Page
    incarnation: int = 0
    fatal: str | None = None
    befell: bool = False
    given_up: str | None = None
    exit_code: int | None = None  # negative: the signal that killed it
    rank: int = 0
    others: "tuple[Child, ...]" = ()
    fell: "Child | None" = None

    @property
    def name(self) -> str:
        return name_of(self.role, self.node) + (f" rank {self.rank}" if self.rank else "")

    @property
    def ranks(self) -> "tuple[Child, ...]":
        """All processes of the node."""
        return (self, *self.others)

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def send(self, message: Message) -> None:
        """Say what matters: it is given some time to be read. One that hangs, its link full of what
        it was offered, doesn't hear it; a death is noticed through `pidfd`."""
        self.offer(message, SEND_SECONDS)

    def offer(self, message: Message, timeout: float = 0.0) -> bool:
        """Say it unless it leaves its messages unread, or is gone; whether it was said."""
        if not self.alive:
            return False
        try:
            return self.link.offer(message, timeout)
        except NodeDied:
            return False

    def reap(self, timeout: float) -> bool:
        """Whether the child has ended within `timeout` seconds; its exit code is then known."""
        if self.alive:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            if not poller.poll(timeout * 1000):
                return False
            _, status = os.waitpid(self.pid, 0)
            self.exit_code = os.waitstatus_to_exitcode(status)
            os.close(self.pidfd)
        return True

    def collect(self, ready: Collection[int]) -> bool:
        """Whether the node has ended: all of its ranks, since where one has, the others are killed.
        ready: descriptors that can be read, `pidfd`s of those who have ended among them."""
        for rank in self.ranks:
            if rank.alive and rank.pidfd in ready:
                rank.reap(timeout=1.0)
                self.fell = self.fell or rank
        if self.fell is not None:
            self.kill()
        return not any(rank.alive for rank in self.ranks)

    def kill(self) -> None:
        """Send SIGKILL to it, to all ranks if it is the first; `reap` tells when it has worked. May
        be called by a signal handler."""
        for rank in self.ranks:
            if rank.alive:
                with suppress(ProcessLookupError):  # an interrupted `reap` has just collected it
                    signal.pidfd_send_signal(rank.pidfd, signal.SIGKILL)

    def forget(self) -> None:
        """Give back what is held of one that has ended."""
        for rank in self.ranks:
            rank.link.close()
            rank.page.close()

    def close(self) -> None:
        """In another child, forked later: hold nothing of this one."""
        self.forget()
        for rank in self.ranks:
            if rank.alive:
                os.close(rank.pidfd)

    def death(self) -> str:
        """How it ended, in words: as did the rank that ended first."""
        first = self if self.given_up is not None or self.fell is None else self.fell
        return first.last_words if first is self else f"rank {first.rank}: {first.last_words}"

    @property
    def failed_by_itself(self) -> bool:
        """Whether its own error ended it, which it has told, and not what was done to it."""
        first = self.fell or self
        return first.fatal is not None and not first.befell and first.given_up is None

    @property
    def last_words(self) -> str:
        """How this process ended, by what is known of it."""
        if self.given_up is not None or self.fatal is not None:
            return self.given_up or self.fatal or ""
        code = self.exit_code or 0
        if code < 0:
            known = {number.value: number.name for number in signal.Signals}
            return f"killed by {known.get(-code, f'signal {-code}')}"
        return f"exited with status {code}"


def name_of(role: Role, node: int) -> str:
    return "API server" if role is Role.SERVER else f"{role} node {node}"


def fork_child(
    role: Role,
    node: int,
    main: ChildMain,
    cores: CoreAssignment | None,
    close: Sequence[Closable],
    incarnation: int = 0,
    rank: int = 0,
) -> Child:
    """Fork a child that runs `main` on `cores` (None: where it likes) and then exits.

    close: links and sockets of the parent that the child must not hold: a copy of the parent's end
    would keep a link open beyond the parent's death. Raises UnsafeFork.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = link_pair()
    station = Station(theirs, Page(), incarnation)
    parent = os.getpid()
    pid = fork_process()
    if pid == 0:
        name = f"mega-{role[:6]}-{node}" + (f".{rank}" if rank else "")
        _run_child(role, name, main, cores, station, parent, (*close, ours))
    theirs.close()
    pidfd = os.pidfd_open(pid)
    return Child(role, node, pid, pidfd, ours, station.page, incarnation, rank=rank)


def fork_process() -> int:
    """os.fork, and the only place of the product that calls it.

    Raises UnsafeFork where this process has more than one thread (a child would inherit the locks
    that others hold just then, and not those who release them), or has initialised a device, which
    no driver lets a child go on with.
    """
    if others := _other_threads():
        raise UnsafeFork(f"a process that forks must not have other threads, but has: {others}")
    if _uses_a_device():
        raise UnsafeFork("a process that forks must not have initialised a device, but has CUDA")
    return os.fork()


def _other_threads() -> str:
    """Their ids; the kernel knows those too that Python didn't start."""
    tasks = {int(task) for task in os.listdir("/proc/self/task")}
    return ", ".join(map(str, sorted(tasks - {os.getpid()})))


def _uses_a_device() -> bool:
    """Never initialises one itself, nor imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _run_child(
    role: Role,
    name: str,
    main: ChildMain,
    cores: CoreAssignment | None,
    station: Station,
    parent: int,
    close: Sequence[Closable],
) -> NoReturn:
    """Never returns into the parent's code, whatever happens."""

    def life(station: Station) -> None:
        if role is not Role.SERVER:  # which has its clients to tell, and notices by its link
            die_with(parent)
        _settle(name, cores, close)
        begin_to_beat(station.page)
        main(station)

    code = 1
    try:
        code = _guarded(life, station)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _settle(name: str, cores: CoreAssignment | None, close: Sequence[Closable]) -> None:
    # Ctrl-C reaches the whole process group; the supervisor alone decides what it means.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for held in close:
        held.close()
    Path("/proc/self/comm").write_text(name)
    if cores is not None:
        os.sched_setaffinity(0, cores.cores)
        if cores.near:
            prefer_memory([socket.number for socket in read_sockets(cores.cores)])


def _guarded(main: ChildMain, station: Station) -> int:
    try:
        main(station)
    except MegaInferError as error:
        _last_words(station.link, str(error))
        return 1
    except Exception as error:  # the process boundary: whatever it is, the supervisor must hear it
        short = shortage(error)
        if short is None:
            traceback.print_exc()
        _last_words(station.link, short or f"{type(error).__name__}: {error}")
        return 1
    return 0


def _last_words(link: ParentLink, message: str) -> None:
    with suppress(NodeDied):  # the supervisor itself is gone: nobody to tell
        link.send(Fatal(message=message))
