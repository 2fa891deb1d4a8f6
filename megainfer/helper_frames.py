"""What a helper process's own side is made of: frames on its pipes, and its bounds."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import BinaryIO

LENGTH_BYTES = 4
PR_SET_PDEATHSIG = 1


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def set_bounds(memory_bytes: int) -> None:
    """memory_bytes: what the process may hold. Interrupts are for those who can tell why they
    end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_with(parent: int) -> None:
    """Be killed when the parent ends, however that comes, and whatever this process does then.

    parent: its process id, as somebody told who knew. The kernel means the thread that started this
    process: it must live as long as the parent does.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before we said so
        os._exit(1)


def set_alarm(cpu_seconds: float) -> None:
    """From now on the process may compute for so long, else it is ended; 0: without bound."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def frames(source: BinaryIO | None = None) -> Iterator[bytes]:
    """What is asked, until the other side closes the pipe. source: in place of standard input."""
    pipe = sys.stdin.buffer if source is None else source
    while len(length := pipe.read(LENGTH_BYTES)) == LENGTH_BYTES:
        yield pipe.read(int.from_bytes(length, "little"))


def own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Both pipes, for the caller alone: whatever else is printed goes to standard error."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return source, sink


def answer(data: bytes, sink: BinaryIO | None = None) -> None:
    """sink: in place of standard output."""
    pipe = sys.stdout.buffer if sink is None else sink
    pipe.write(framed(data))
    pipe.flush()
