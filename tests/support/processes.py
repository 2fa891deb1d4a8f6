"""What a test run may leave behind: processes, whoever has started them in between, and memory."""

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNET = 0x40000000
END_SECONDS = 10.0  # of what has been told to end, and is about to
OWN = "multiprocessing.resource_tracker"
"""Ends with the interpreter that it belongs to."""


def adopt_orphans() -> None:
    """What loses its parent from now on becomes a child of this process, so that it is found."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def enter_network(name: str) -> None:
    """From now on this process, which has one thread, is in the namespace that `ip netns add` has
    made."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(Path("/var/run/netns", name)) as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def children_left() -> list[str]:
    """`pid: command` of every descendant that lives after a bounded while; soon empty if none."""
    deadline = time.monotonic() + END_SECONDS
    while (left := list(_living_descendants())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def shared_memory() -> set[str]:
    """Names of the files that stand for memory which processes of this machine share."""
    return set(os.listdir("/dev/shm"))


def shared_memory_left(before: set[str]) -> set[str]:
    """Those that have come since, after a bounded while: others on this machine may use some."""
    deadline = time.monotonic() + END_SECONDS
    while (left := shared_memory() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _living_descendants() -> Iterator[str]:
    parents = _living_parents()
    for pid in parents:
        if _descends(pid, os.getpid(), parents) and OWN not in (command := _command(pid)):
            yield f"{pid}: {command}"


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while (pid := parents.get(pid, 0)) not in (0, ancestor):
        pass
    return pid == ancestor


def _living_parents() -> dict[int, int]:
    """Process id -> its parent's, of all processes that haven't ended."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ProcessLookupError):
                continue  # it ended while we looked
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    return parents


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""
