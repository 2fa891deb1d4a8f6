"""An engine's processes, which run only when it is their turn."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

STOP_SECONDS = 30.0
LAST_LINES = 4
HIDDEN = "PYTHONPATH", "OMP_NUM_THREADS"
"""Variables of this process that would change another engine."""


class EngineFailed(Exception):
    """An engine ended, took too long, or answered nonsense."""


class ProcessGroup:
    """A command and all that it starts, stopped (SIGSTOP) whenever it isn't `running`.

    Threads that spin for work would otherwise take the cores from the engine under measurement.
    It is a process group, but no session, of its own: should this process be killed, the kernel
    ends an orphaned group with stopped members.
    """

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self.process = subprocess.Popen(
            arguments,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={k: v for k, v in os.environ.items() if k not in HIDDEN} | dict(variables),
            process_group=0,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-LAST_LINES:])

    def end(self) -> None:
        """By closing its standard input, and what is left by force; in bounded time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._signal(signal.SIGKILL)
        self.process.stdout.close()
        self._log.close()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return  # nobody is left; whoever asks it for something is told
