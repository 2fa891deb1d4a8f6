"""A program in a process group of its own: torchrun signals the whole group of what it has started,
and within an instance the first process alone decides what a signal means."""

import os
import signal
import sys
from typing import NoReturn

from megainfer.helper_frames import die_with
from megainfer.supervise.child import fork_process

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def go_apart() -> None:
    """Returns in a child, which is the program from now on and ends with this process. This one
    passes signals on to it, and ends as it does."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until both know what to do with one
    pid = fork_process()
    if pid:
        _stand_by(pid)
    os.setpgid(0, 0)
    die_with(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


def _stand_by(pid: int) -> NoReturn:
    for number in PASSED_ON:
        signal.signal(number, lambda came, _: os.kill(pid, came))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    _, status = os.waitpid(pid, 0)  # nothing else is to be done, and signals interrupt it
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(128 - code)
