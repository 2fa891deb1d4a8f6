"""Children of the supervisor: what is heard of those that fail, and ending those that are gone."""

import os
import signal
from time import monotonic

from megainfer.errors import ConfigError
from megainfer.messages import Fatal, Role, Stats, Stop
from megainfer.supervise.child import Child, ChildMain, fork_child
from megainfer.topology import CoreAssignment

SECONDS = 20.0
NO_SUCH_CORE = CoreAssignment((1_000_000,))


def ended(main: ChildMain, cores: CoreAssignment | None = None) -> Child:
    child = fork_child(Role.EXPERT, 3, main, cores, ())
    assert child.reap(SECONDS)
    return child


def fail(link) -> None:
    raise ConfigError("no luck")


def test_an_error_is_told_before_the_end():
    child = ended(fail)
    assert child.link.receive(0) == Fatal("no luck")
    assert child.exit_code == 1


def test_what_fails_before_the_work_begins_is_told_too():
    child = ended(lambda link: None, NO_SUCH_CORE)
    last = child.link.receive(0)
    assert isinstance(last, Fatal)
    assert last.message.startswith("OSError: [Errno 22]")
    assert child.exit_code == 1


def test_a_death_is_described_by_its_signal():
    child = fork_child(Role.EXPERT, 3, lambda link: link.receive(SECONDS), None, ())
    child.kill()
    assert child.reap(SECONDS)
    assert child.death() == "killed by SIGKILL"


def test_one_that_reads_nothing_holds_nobody_up():
    child = fork_child(Role.SERVER, 0, lambda link: signal.pause(), None, ())
    while child.offer(Stats(None, {"attention node 0": {"text": "x" * 1000}})):
        pass
    began = monotonic()
    child.send(Stop())
    assert monotonic() - began < SECONDS
    child.kill()
    assert child.reap(SECONDS)


def test_killing_one_that_was_collected_a_moment_ago_is_harmless():
    """As when a second Ctrl-C interrupts `reap` just after its waitpid."""
    child = fork_child(Role.EXPERT, 3, lambda link: None, None, ())
    os.waitpid(child.pid, 0)
    child.kill()
