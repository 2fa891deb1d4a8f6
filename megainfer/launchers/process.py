"""A launcher's process, as the supervisor that has started it sees it."""

import logging
import os
import select
import signal
from contextlib import suppress
from time import monotonic

from megainfer.errors import NodeDied
from megainfer.launchers.words import Failed, Here, Said, Words

log = logging.getLogger("megainfer")

REAP_SECONDS = 5.0
_LOOK_SECONDS = 0.1


class LauncherProcess:
    """A `hosts.launcher.Launcher`. name: what to call it. pid: a child of this process, which ends
    with it. pipe: where its words come from; they end when it has ended, with all its agents
    here."""

    def __init__(self, name: str, pid: int, pipe: int) -> None:
        self._name = name
        self.pid = pid
        self._words = Words(pipe)
        self._failed: str | None = None
        self._here: str | None = None
        self._status: int | None = None

    def fileno(self) -> int:
        return self._words.pipe

    def check(self) -> None:
        self._hear()
        if self._failed is not None:
            raise NodeDied(self._failed)
        if self._words.ended:
            self._reap(REAP_SECONDS)
            raise NodeDied(f"{self._name} {self._end()}, and its agents with it")

    def address(self, seconds: float) -> str:
        """Of this machine, as the engine knows it. Raises NodeDied where it isn't told in time."""
        deadline = monotonic() + seconds
        while True:
            self.check()
            if self._here is not None:
                return self._here
            if (left := deadline - monotonic()) <= 0:
                raise NodeDied(f"{self._name} has not reached its cluster within {seconds:g} s")
            select.select([self._words.pipe], [], [], left)

    def end(self, seconds: float) -> None:
        if not self._reap(seconds):
            log.warning("%s did not end within %g s; killing it", self._name, seconds)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap(REAP_SECONDS)

    def close(self) -> None:
        self._words.close()

    def _hear(self) -> None:
        for word in self._words.read():
            match word:
                case Here(address=address):
                    self._here = address
                case Said(text=text):
                    log.info("%s", text)
                case Failed(reason=reason):
                    self._failed = self._failed or reason

    def _reap(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        deadline = monotonic() + seconds
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif monotonic() > deadline:
                return False
            elif self._words.ended:
                select.select([], [], [], _LOOK_SECONDS)  # its pipe is closed before it is gone
            else:
                select.select([self._words.pipe], [], [], _LOOK_SECONDS)
                self._hear()  # so that it never waits for a reader
        return True

    def _end(self) -> str:
        """How it ended, in words."""
        if self._status is not None and self._status < 0:
            return f"was killed by {signal.Signals(-self._status).name}"
        return "has ended" if self._status is None else f"ended with status {self._status}"
