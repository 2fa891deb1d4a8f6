"""Tool calls that can be read only once they are whole."""

import json
import re
from collections.abc import Callable
from typing import Protocol

from megainfer.text.detokenizer import overlap
from server.parsing.json_span import JsonSpan
from server.parsing.parts import Call, CallDelta, Parts

WHITE = " \t\r\n"
ReadSpan = Callable[[str], list[Call] | None]
"""The calls of a whole span, tags included; None where it is no call."""


class CallFinder(Protocol):
    """Finds where calls begin and end. between: what may stand before them and is dropped."""

    between: str

    def restart(self) -> None:
        """The next text begins elsewhere; until then each continues the one before."""
        ...

    def find(self, text: str, at_start: bool) -> tuple[int, int | None]:
        """Where a span begins or may be about to, and where it ends, None while that isn't known.

        at_start: nothing but white space came before. Both are the text's length where none begins.
        """
        ...


class SpanParser:
    """Splits a text into content and spans of calls, each of which is given out as a whole.

    A span that is no call, or that never ends, stays content. White space around calls is dropped.
    """

    def __init__(self, finder: CallFinder, read: ReadSpan) -> None:
        self._finder = finder
        self._read = read
        self._white = ""  # what stands before the text and is dropped where a call follows
        self._text = ""  # not given out yet
        self._calls = 0
        self._at_start = True  # nothing but white space since the beginning or the last call

    def push(self, text: str) -> Parts:
        self._text += text
        parts = Parts()
        while self._step(parts):
            pass
        return parts

    def finish(self) -> Parts:
        text, white, self._text, self._white = self._text, self._white, "", ""
        return Parts(content=white + text if text or not self._calls else "")

    def _step(self, parts: Parts) -> bool:
        """Read on as far as it is certain; True: there may be more."""
        if self._at_start:
            self._set_white_apart()
        text = self._text
        start, end = self._finder.find(text, self._at_start)
        if start:
            self._say(start, parts)
            return True
        if end is None:
            return False
        calls = self._read(text[start:end])
        if calls is None:
            self._say(end, parts)
        else:
            self._give(calls, parts)
            self._white, self._text, self._at_start = "", text[end:], True
            self._finder.restart()
        return True

    def _set_white_apart(self) -> None:
        """So that it is looked at once, however much there is."""
        text = self._text.lstrip(self._finder.between)
        self._white += self._text[: len(self._text) - len(text)]
        self._text = text

    def _say(self, border: int, parts: Parts) -> None:
        parts.content += self._white + self._text[:border]
        self._white, self._text, self._at_start = "", self._text[border:], False
        self._finder.restart()

    def _give(self, calls: list[Call], parts: Parts) -> None:
        for call in calls:
            parts.calls.append(CallDelta(self._calls, call.name, call.arguments))
            self._calls += 1


class TaggedSpan:
    """From one tag to another, anywhere."""

    between = WHITE

    def __init__(self, opening: str, closing: str) -> None:
        self._opening = opening
        self._closing = closing
        self.restart()

    def restart(self) -> None:
        self._searched = 0  # characters in which no closing tag begins

    def find(self, text: str, at_start: bool) -> tuple[int, int | None]:
        start = text.find(self._opening)
        if start < 0:
            border = len(text) - overlap(text, self._opening)
            return border, None
        end = text.find(self._closing, max(start, self._searched))
        self._searched = max(0, len(text) - len(self._closing) + 1)
        return start, None if end < 0 else end + len(self._closing)


class BracketSpan:
    """A bracket and all that it holds, where the text begins with it, or a call ended before."""

    def __init__(self, opening: str, between: str, make: Callable[[], JsonSpan]) -> None:
        """between: characters that may stand before it. make: who follows one."""
        self.between = between
        self._opening = opening
        self._make = make
        self.restart()

    def restart(self) -> None:
        self._follower = self._make()
        self._taken = 0

    def find(self, text: str, at_start: bool) -> tuple[int, int | None]:
        start = len(text) - len(text.lstrip(self.between))
        if not at_start or text[start : start + 1] not in ("", self._opening):
            return len(text), None
        self._taken += len(self._follower.take(text[start + self._taken :]))
        return start, start + self._taken if self._follower.ended else None


def as_call(name: str, arguments: object) -> Call:
    """With its arguments as JSON. Raises ValueError or TypeError for what that doesn't have."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    (name + text).encode()  # lone surrogates can't be sent
    return Call(name, text)


def in_a_row(pattern: re.Pattern[str], text: str) -> list[re.Match[str]] | None:
    """The matches that a text consists of, but for white space; None where something else stands
    there. Never a search: what a model repeats without end would be looked through each time."""
    found, place = [], 0
    while place < len(text):
        if (match := pattern.match(text, place)) is not None:
            found.append(match)
            place = match.end()
        elif text[place].isspace():
            place += 1
        else:
            return None
    return found
