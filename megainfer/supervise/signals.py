"""What the outside asks of a supervisor by signals."""

import os
import signal
import socket
import sys
from collections.abc import Callable

MAX_SIGNALS = 64  # that came in the meantime


class Interrupted(Exception):
    """Ctrl-C, a termination signal, or the owner asked for the end."""


class Terminated(Interrupted):
    """A termination signal: what serves may finish what it has begun."""


class Signals:
    """Signals as something that can be polled for. in_terminal: whether Ctrl-C is for this process;
    else whoever owns it decides what that means."""

    def __init__(self, in_terminal: bool) -> None:
        self._wakeup, self._written = socket.socketpair()
        self._wakeup.setblocking(False)
        self._written.setblocking(False)
        self._in_terminal = in_terminal
        self._has_terminal = os.isatty(sys.stdout.fileno())

    def listen(self) -> None:
        """From now on they are collected, and do nothing by themselves."""
        signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGHUP, lambda *_: None)
        signal.signal(signal.SIGINT, (lambda *_: None) if self._in_terminal else signal.SIG_IGN)

    def fileno(self) -> int:
        """Readable when there are any."""
        return self._wakeup.fileno()

    def heed(self) -> bool:
        """Take in what has come; whether the options are to be read again.

        Raises Interrupted, or Terminated, where the end is asked for.
        """
        came = set(self._wakeup.recv(MAX_SIGNALS))
        if signal.SIGHUP in came and self._terminal_is_gone():
            raise Interrupted
        if ends := came - {signal.SIGHUP}:
            raise Terminated if ends == {signal.SIGTERM} else Interrupted
        return True

    def only(self, act: Callable[[], None]) -> None:
        """From now on whoever asks for the end has this done at once."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, lambda *_: act())
        if self._in_terminal:
            signal.signal(signal.SIGINT, lambda *_: act())

    def close(self) -> None:
        self._wakeup.close()
        self._written.close()

    def _terminal_is_gone(self) -> bool:
        """Whether the terminal that this process writes to was closed, which is told by SIGHUP
        too."""
        if not self._has_terminal:
            return False
        try:
            os.tcgetpgrp(sys.stdout.fileno())
        except OSError:
            return True
        return False
