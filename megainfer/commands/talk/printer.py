"""How an answer is written while it comes."""

import os
import shutil
import unicodedata
from typing import TextIO

from megainfer.commands.talk.answer import Piece
from megainfer.commands.talk.markdown import Styler
from megainfer.commands.talk.wrap import Wrapper

DIM, RESET, ERASE_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
WAITING = f"{DIM}…{RESET}"


class PlainPrinter:
    """The answer alone, for files and programs."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def begin(self) -> None:
        """Nothing is shown of the waiting."""

    def push(self, piece: Piece) -> None:
        if not piece.reasoning:
            self._out.write(printable(piece.text))
            self._out.flush()

    def end(self) -> None:
        self._out.write("\n")
        self._out.flush()


class TerminalPrinter:
    """Thoughts dimmed, then the answer; lines break between words."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._wrapper = Wrapper(shutil.get_terminal_size().columns)
        self._styler = Styler()
        self._waiting = self._thinking = self._answered = False

    def begin(self) -> None:
        """Show that it is waited for."""
        self._write(WAITING)
        self._waiting = True

    def push(self, piece: Piece) -> None:
        """What was thought is told from what is said by its style and an empty line."""
        text = printable(piece.text)
        self._end_waiting()
        if piece.reasoning:
            self._write((DIM if not self._thinking else "") + self._wrapper.push(text))
            self._thinking = True
            return
        self._end_thinking()
        if not self._answered:
            text = text.lstrip("\n")
            self._answered = bool(text)
        for line in text.splitlines(keepends=True):
            styled = self._styler.push(line)
            self._write(self._wrapper.push(styled, keep=self._styler.fenced))

    def end(self) -> None:
        """Ends the line, in plain style, if there is any."""
        self._end_waiting()
        if self._thinking or self._answered:
            rest = self._styler.finish() if self._answered else RESET
            self._write(f"{self._wrapper.push(rest)}\n")

    def _end_waiting(self) -> None:
        if self._waiting:
            self._write(ERASE_LINE)
        self._waiting = False

    def _end_thinking(self) -> None:
        if self._thinking:
            self._write(f"{RESET}\n\n")
            self._wrapper = Wrapper(shutil.get_terminal_size().columns)
        self._thinking = False

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


Printer = PlainPrinter | TerminalPrinter


def printer_for(out: TextIO) -> Printer:
    """By where it goes; NO_COLOR and a terminal without styles have it plain."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return TerminalPrinter(out) if out.isatty() and not plain else PlainPrinter(out)


def printable(text: str) -> str:
    """Without control characters, with which a model could steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
