"""Where messages are typed: several lines, earlier ones, and what is pasted in one piece."""

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from megainfer.commands.talk.settings import KINDS
from megainfer.commands.talk.slash import ALIASES, COMMANDS

STYLE = Style.from_dict({"you": "bold ansigreen", "hint": "ansibrightblack"})
HINT = FormattedText([("class:hint", "a message, or /help")])
INDENT = "    ▸ "


class Editor:
    """Reads messages from the terminal."""

    def __init__(self) -> None:
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("class:you", "you ▸ ")]),
            multiline=True,
            prompt_continuation=lambda width, line, wrapped: " " * width if wrapped else INDENT,
            key_bindings=_keys(),
            completer=_completer(),
            complete_while_typing=Condition(self._is_command),
            placeholder=HINT,
            style=STYLE,
            reserve_space_for_menu=4,
        )

    def read(self) -> str | None:
        """The next message; None at the end: Ctrl-D, or Ctrl-C where nothing is typed."""
        print()
        try:
            return self._session.prompt().strip()
        except EOFError:
            return None

    def _is_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")


def _completer() -> Completer:
    settings = [f"/set {name}" for name in KINDS]
    return WordCompleter([*COMMANDS, *settings, *ALIASES], sentence=True)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        # More keys at once than anybody types: it was pasted where the terminal doesn't say so.
        if event.key_processor.input_queue:
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _give_up(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError)

    return keys


TICK_SECONDS = 0.25


@contextmanager
def interrupts_are_heard() -> Iterator[None]:
    """An interrupt that comes just before a thread waits for its next bytes would be heard with
    them, and they may never come: a tick wakes it. Of the main thread only."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def nothing_is_echoed() -> Iterator[None]:
    """While an answer is written: what is typed meanwhile waits for the next prompt. Ctrl-C
    interrupts as ever."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    during = termios.tcgetattr(sys.stdin)
    during[3] &= ~(termios.ECHO | termios.ICANON)
    during[3] |= termios.NOFLSH  # Ctrl-C doesn't drop what is typed
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, during)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
