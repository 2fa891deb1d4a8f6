"""A program in a pseudo-terminal, and what its user sees."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyte

from tests.support.forked import Files, Forked, own_terminal, start

WAIT_SECONDS = 20.0  # how long is waited for what must happen; never so long
ENTER, ALT_ENTER, CTRL_C, CTRL_D, TAB, UP = "\r", "\x1b\r", "\x03", "\x04", "\t", "\x1b[A"


def pasted(text: str) -> str:
    """As a terminal sends it that tells what is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


class Terminal:
    """raw: all that the program has written. `screen` shows it as a terminal does.

    begin: starts the program, given the terminal's other end and the environment."""

    def __init__(
        self,
        begin: Callable[[int, Mapping[str, str]], Forked | subprocess.Popen[bytes]],
        columns: int = 80,
        rows: int = 40,
    ) -> None:
        self.raw = ""
        self._screen = pyte.HistoryScreen(columns, rows, history=2000)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        hidden = ("NO_COLOR", "COLUMNS", "LINES")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        try:
            self.process = begin(slave, {**kept, **environment})
        finally:
            os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """As Ctrl-C where the program leaves that to the terminal."""
        self.type(CTRL_C)

    @property
    def lines(self) -> list[str]:
        """What is to be seen, with what has scrolled away, without empty lines at the end."""
        width = self._screen.columns
        above = [
            "".join(line[column].data for column in range(width)).rstrip()
            for line in self._screen.history.top
        ]
        shown = [*above, *(line.rstrip() for line in self._screen.display)]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def style_of(self, text: str) -> Any:
        """Of the first character of this text where it is seen."""
        for row, line in enumerate(self._screen.display):
            if (column := line.find(text)) >= 0:
                return self._screen.buffer[row][column]
        raise AssertionError(f"{text!r} is not to be seen:\n{self.text}")

    def until(self, seen: Callable[["Terminal"], object] | str) -> None:
        """Until this text, or what `seen` asks for, is there."""
        there = (lambda terminal: seen in terminal.text) if isinstance(seen, str) else seen
        deadline = time.monotonic() + WAIT_SECONDS
        while not there(self):
            assert self._read(deadline - time.monotonic()), f"not seen: {seen}\n{self.text}"

    def end(self) -> int:
        """The exit status of a program that is about to end."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(WAIT_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        """Whether something came in so long; not after the program has ended."""
        ready, _, _ = select.select([self._master], [], [], max(seconds, 0.0))
        if not ready:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # nobody has the other end open any more
            return False
        self.raw += data.decode(errors="replace")
        self._stream.feed(data)
        return bool(data)


def interpreted(script: str) -> Terminal:
    """A Python script of a user's own."""

    def begin(slave: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=own_terminal,
        )

    return Terminal(begin)


@contextmanager
def megainfer_in_terminal(*args: str, columns: int = 80, rows: int = 40) -> Iterator[Terminal]:
    """`megainfer ARGS`; it is killed if it still runs at the end."""

    def begin(slave: int, environment: Mapping[str, str]) -> Forked | subprocess.Popen[bytes]:
        return start("megainfer", args, Files(slave, slave, slave), environment)

    terminal = Terminal(begin, columns, rows)
    try:
        yield terminal
    finally:
        terminal.close()
