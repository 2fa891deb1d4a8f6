"""Who hangs: a process that has stopped, or one whose main loop is stuck.

A machine that is overloaded hangs nobody: a process counts as stopped when it beats no more though
none of its threads could run, and the supervisor, who looks, has looked all the time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

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


class Vigil:
    """Looks at heartbeats, `LOOK_SECONDS` apart."""

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        can_run: Callable[[int], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._can_run = can_run or _can_run
        self._watched: dict[int, _Watched] = {}  # by process id
        self._looked_at = clock()

    def look(self, children: Iterable[Child]) -> list[tuple[Child, str]]:
        """Those who hang, and in which way, in words."""
        now = self._clock()
        absent = now - self._looked_at > 2 * LOOK_SECONDS
        self._looked_at = now
        living = [child for child in children if child.alive]
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
        if silent > STOPPED_SECONDS and not self._can_run(child.pid):
            return f"it has not shown any life for {silent:.1f} s"
        due = child.page.due
        if due and now - due > STUCK_SECONDS:
            return f"its work should have been done {now - due:.1f} s ago"
        return None


def _can_run(pid: int) -> bool:
    """Whether any thread of it runs, or would if a processor or a disk were free."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # it, or a thread of it, has just ended
        return True
    return any(stat.rpartition(")")[2].split()[0] in RUNNABLE for stat in stats)
