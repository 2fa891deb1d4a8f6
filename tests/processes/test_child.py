"""Children of the supervisor: what is heard of those that fail, and ending those that are gone."""

import functools
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import SimpleNamespace

import pytest

from megainfer.errors import ConfigError, UnsafeFork
from megainfer.launch.machine import read_sockets
from megainfer.launch.station import Station
from megainfer.messages.from_child import Fatal, Stats
from megainfer.messages.message import Role
from megainfer.messages.to_child import Stop
from megainfer.supervise.child import Child, ChildMain, fork_child, fork_process
from megainfer.topology import CoreAssignment
from tests.support.m2n_cluster import fork, join_all

SECONDS = 20.0
NO_SUCH_CORE = CoreAssignment((1_000_000,))


def alone(test: Callable[[], None]) -> Callable[[], None]:
    """In a process that has no threads, which pytest's may have from tests before."""

    @functools.wraps(test)
    def run() -> None:
        join_all([fork(test)])

    return run


def ended(main: ChildMain, cores: CoreAssignment | None = None) -> Child:
    child = fork_child(Role.EXPERT, 3, main, cores, ())
    assert child.reap(SECONDS)
    return child


def fail(station: Station) -> None:
    raise ConfigError("no luck")


@alone
def test_an_error_is_told_before_the_end():
    child = ended(fail)
    assert child.link.receive(0) == Fatal("no luck")
    assert child.exit_code == 1


@alone
def test_what_fails_before_the_work_begins_is_told_too():
    child = ended(lambda station: None, NO_SUCH_CORE)
    last = child.link.receive(0)
    assert isinstance(last, Fatal)
    assert last.message.startswith("OSError: [Errno 22]")
    assert child.exit_code == 1


def say_where_memory_is(station: Station) -> None:
    memory = mmap.mmap(-1, 1 << 22)
    memory[0] = 1
    maps = Path("/proc/self/numa_maps").read_text().splitlines()
    raise ConfigError(next((line for line in maps if " anon=" in line), "nowhere"))


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="a kernel without NUMA")
@alone
def test_memory_is_beside_the_cores():
    (core, *_) = os.sched_getaffinity(0)
    (socket,) = read_sockets((core,))
    for near, policy in ((True, f"prefer:{socket.number}"), (False, "default")):
        told = ended(say_where_memory_is, CoreAssignment((core,), near)).link.receive(0)
        assert isinstance(told, Fatal)
        assert told.message.split()[1] == policy


@alone
def test_a_death_is_described_by_its_signal():
    child = fork_child(Role.EXPERT, 3, lambda station: station.link.receive(SECONDS), None, ())
    child.kill()
    assert child.reap(SECONDS)
    assert child.death() == "killed by SIGKILL"


@alone
def test_one_that_reads_nothing_holds_nobody_up():
    child = fork_child(Role.SERVER, 0, lambda station: signal.pause(), None, ())
    while child.offer(Stats(None, {"attention node 0": {"text": "x" * 1000}})):
        pass
    began = monotonic()
    child.send(Stop())
    assert monotonic() - began < SECONDS
    child.kill()
    assert child.reap(SECONDS)


@alone
def test_one_that_has_ended_is_told_nothing():
    """Who wanted something of it may not know yet."""
    child = ended(lambda station: None)
    child.forget()
    child.send(Stop())
    assert not child.offer(Stop())


@alone
def test_a_child_holds_nothing_of_its_siblings():
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def tell(station: Station) -> None:
        station.link.send(Fatal(str(open_files())))

    def first_told(siblings: list[Child]) -> int:
        child = fork_child(Role.EXPERT, 1, tell, None, siblings)
        assert child.reap(SECONDS)
        told = child.link.receive(0)
        child.forget()
        assert isinstance(told, Fatal)
        return int(told.message)

    alone = first_told([])
    siblings = [fork_child(Role.EXPERT, n, _wait, None, ()) for n in range(3)]
    assert first_told(siblings) == alone
    for sibling in siblings:
        sibling.kill()
        assert sibling.reap(SECONDS)


def _wait(station: Station) -> None:
    station.link.receive(SECONDS)


@alone
def test_killing_one_that_was_collected_a_moment_ago_is_harmless():
    """As when a second Ctrl-C interrupts `reap` just after its waitpid."""
    child = fork_child(Role.EXPERT, 3, lambda station: None, None, ())
    os.waitpid(child.pid, 0)
    child.kill()


@alone
def test_a_process_with_another_thread_does_not_fork():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    with pytest.raises(
        UnsafeFork, match=f"must not have other threads, but has: {thread.native_id}"
    ):
        fork_child(Role.EXPERT, 3, lambda station: None, None, ())
    done.set()
    thread.join()


@alone
def test_a_process_that_uses_a_device_does_not_fork():
    for initialised in (False, True):
        sys.modules["torch"] = SimpleNamespace(
            cuda=SimpleNamespace(is_initialized=lambda initialised=initialised: initialised)
        )
        if not initialised:
            assert ended(lambda station: None).exit_code == 0
        else:
            with pytest.raises(UnsafeFork, match="initialised a device"):
                fork_process()


def test_asking_whether_a_fork_is_safe_loads_nothing():
    program = (
        "import os, sys; from megainfer.supervise.child import fork_process\n"
        "pid = fork_process()\n"
        "if pid == 0: os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
