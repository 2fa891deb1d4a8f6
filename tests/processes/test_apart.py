"""A program that is apart from the process group of who started it."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.served import session_members

SECONDS = 60.0
PROGRAM = """
import os, signal, sys
from megainfer.launchers.apart import go_apart
go_apart()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])
print(os.getpid(), os.getpgid(0), flush=True)
while True:
    came = signal.sigwait([signal.SIGTERM, signal.SIGHUP])
    print(signal.Signals(came).name, flush=True)
    if came == signal.SIGTERM:
        left = signal.sigtimedwait([signal.SIGTERM], 1.0)
        sys.exit(7 if left is None else 8)
"""


@pytest.fixture
def started() -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, as torchrun starts it."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        for pid, _ in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], SECONDS)
    assert ready, "it says nothing"
    return process.stdout.readline().strip()


def test_a_signal_to_the_group_comes_once_and_the_end_is_passed_on(
    started: subprocess.Popen[str],
) -> None:
    pid, group = map(int, said(started).split())
    assert pid == group != started.pid
    os.killpg(started.pid, signal.SIGHUP)
    assert said(started) == "SIGHUP"
    os.killpg(started.pid, signal.SIGTERM)
    assert said(started) == "SIGTERM"
    assert started.wait(SECONDS) == 7


def test_a_program_that_is_killed_is_told_as_such(started: subprocess.Popen[str]) -> None:
    pid, _ = map(int, said(started).split())
    os.kill(pid, signal.SIGKILL)
    assert started.wait(SECONDS) == -signal.SIGKILL


def test_it_ends_with_whoever_stands_by(started: subprocess.Popen[str]) -> None:
    pid, _ = map(int, said(started).split())
    watched = os.pidfd_open(pid)
    started.kill()
    assert select.select([watched], [], [], SECONDS)[0]
    os.close(watched)
