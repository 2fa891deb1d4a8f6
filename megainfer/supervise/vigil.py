"""Who hangs: a process that has stopped, or one whose main loop is stuck.

A machine that is overloaded hangs nobody: a process counts as stopped when it beats no more though
none of its threads could run, and the supervisor, who looks, has looked all the time. Of the time
beyond what work should take, what a thread has waited for a processor doesn't count.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Protocol

from megainfer.supervise.child import Child

LOOK_SECONDS = 0.1
STOPPED_SECONDS = 0.8
"""Without a beat; one comes every tenth of a second."""
STUCK_SECONDS = 1.0
"""Beyond the time until which the work at hand should be done."""
RUNNABLE = frozenset("RD")
"""States of a thread that is on a processor, waits for one, or for a disk."""


@dataclass(slots=True)
class _Watched:
    beats: int
    since: float  # when this many were first seen


@dataclass(slots=True)
class _Overdue:
    seconds: float = 0.0  # with a processor
    waited: float = 0.0  # for one, since the process's start


class Processes(Protocol):
    """What the kernel knows of a process."""

    def can_run(self, pid: int) -> bool:
        """Whether any thread of it runs, or would if a processor or a disk were free."""

    def waited(self, pid: int) -> float:
        """Seconds that the thread which waited longest for a processor has waited for one."""


class Vigil:
    """Looks at heartbeats, `LOOK_SECONDS` apart."""

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        processes: Processes | None = None,
    ) -> None:
        self._clock = clock
        self._processes = processes or LinuxProcesses()
        self._watched: dict[int, _Watched] = {}  # by process id
        self._overdue: dict[int, _Overdue] = {}
        self._looked_at = clock()

    def look(self, children: Iterable[Child]) -> list[tuple[Child, str]]:
        """Those who hang, and in which way, in words."""
        now = self._clock()
        since, self._looked_at = now - self._looked_at, now
        absent = since > 2 * LOOK_SECONDS
        living = [child for child in children if child.alive]
        passed = 0.0 if absent else since
        self._overdue = {c.pid: self._late(c, passed) for c in living if _is_due(c, now)}
        self._watched = {c.pid: self._seen(c, now, absent) for c in living}
        reasons = ((child, self._reason(child, now)) for child in living)
        return [(child, reason) for child, reason in reasons if reason is not None]

    def silence(self, child: Child) -> float:
        """Seconds since it last beat, as of the last look."""
        watched = self._watched.get(child.pid)
        return 0.0 if watched is None else self._looked_at - watched.since

    def _seen(self, child: Child, now: float, absent: bool) -> _Watched:
        """absent: nobody looked for a while, so that silence proves nothing."""
        before, beats = self._watched.get(child.pid), child.page.beats
        if before is None or before.beats != beats or absent:
            return _Watched(beats, now)
        return before

    def _reason(self, child: Child, now: float) -> str | None:
        silent = now - self._watched[child.pid].since
        if silent > STOPPED_SECONDS and not self._processes.can_run(child.pid):
            return f"it has not shown any life for {silent:.1f} s"
        late = self._overdue.get(child.pid)
        if late is not None and late.seconds > STUCK_SECONDS:
            return f"its work should have been done {now - child.page.due:.1f} s ago"
        return None

    def _late(self, child: Child, since: float) -> _Overdue:
        """since: seconds since the last look that count."""
        waited = self._processes.waited(child.pid)
        late = self._overdue.get(child.pid)
        if late is None:
            return _Overdue(0.0, waited)
        return _Overdue(late.seconds + max(0.0, since - (waited - late.waited)), waited)


def _is_due(child: Child, now: float) -> bool:
    return 0.0 < child.page.due < now


class LinuxProcesses:
    """`Processes`, out of /proc."""

    def can_run(self, pid: int) -> bool:
        """See `Processes.can_run`."""
        stats = self._of_tasks(pid, "stat")
        return not stats or any(s.rpartition(")")[2].split()[0] in RUNNABLE for s in stats)

    def waited(self, pid: int) -> float:
        """See `Processes.waited`."""
        stats = self._of_tasks(pid, "schedstat")
        return max((int(stat.split()[1]) * 1e-9 for stat in stats), default=0.0)

    def _of_tasks(self, pid: int, file: str) -> list[str]:
        """None of a process, or a thread, that has just ended."""
        try:
            return [(task / file).read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        except OSError:
            return []
