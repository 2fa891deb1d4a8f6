"""Tool calls in a model's text."""

import json
import re
from enum import Enum, auto
from typing import Any

from megainfer.text.detokenizer import overlap
from server.parsing.formats import CallFormat
from server.parsing.json_span import JsonSpan
from server.parsing.parts import CallDelta, Parts
from server.parsing.spans import as_call


class _State(Enum):
    TEXT = auto()  # outside of calls
    HEADER = auto()  # after an opening: a call begins, or the end of several comes
    ARGUMENTS = auto()
    TRAILER = auto()  # after a call's arguments


class CallParser:
    """Splits a text into content and the calls of one format, whose arguments stream.

    What isn't a call stays content, tags included: a header that was never completed, and what
    stands between a call's arguments and its closing. White space around calls is dropped. Once a
    call's name was given out, its arguments are what the model wrote, whole or not.
    """

    def __init__(self, call_format: CallFormat) -> None:
        self._format = call_format
        self._state = _State.TEXT
        self._text = ""  # not given out yet
        self._opened = ""  # the opening, as long as it may turn out to be content
        self._span = JsonSpan()
        self._calls = 0
        self._blank = True  # nothing but white space since the beginning or the last call
        self._steps = {
            _State.TEXT: self._read_text,
            _State.HEADER: self._read_header,
            _State.ARGUMENTS: self._read_arguments,
            _State.TRAILER: self._read_trailer,
        }

    def push(self, text: str) -> Parts:
        self._text += text
        parts = Parts()
        while self._steps[self._state](parts):
            pass
        return parts

    def finish(self) -> Parts:
        parts = Parts()
        text, self._text = self._text, ""
        if self._state is _State.TRAILER:
            text = text[: len(text) - overlap(text, self._format.closing)]
            parts.content += "" if self._format.trailer.fullmatch(text) else text
        elif self._state is _State.TEXT or not self._recover(text, parts):
            rest = self._opened + text
            if rest.strip(self._format.between) or not self._calls:
                parts.content += rest
        return parts

    # Each reads on as far as it is certain; True: the state has changed and there may be more.

    def _read_text(self, parts: Parts) -> bool:
        before, opening, after = self._text.partition(self._format.opening)
        border = len(before) - (0 if opening else overlap(before, self._format.opening))
        if self._blank and not before[:border].strip():
            border = 0  # held: white space is content only where no call follows
        self._say(before[:border], parts)
        self._text = before[border:]
        if opening:
            self._text, self._opened, self._state = after, before[border:] + opening, _State.HEADER
        return bool(opening)

    def _read_header(self, parts: Parts) -> bool:
        text, end = self._text.lstrip(self._format.between), self._format.end
        if end is not None and text.startswith(end) and not self._opened:
            return self._leave(text.removeprefix(end))
        header = self._format.header.match(text)
        if header is not None:
            self._begin(header, text[header.end() :], parts)
            return True
        return self._give_up(parts)

    def _read_arguments(self, parts: Parts) -> bool:
        arguments = self._span.take(self._text)
        self._text = self._text[len(arguments) :]
        if arguments:
            parts.calls.append(CallDelta(self._calls - 1, None, arguments))
        if self._span.ended:
            self._state = _State.TRAILER
        return self._span.ended

    def _read_trailer(self, parts: Parts) -> bool:
        if not self._format.closing:
            return self._leave(self._text)
        between, closing, after = self._text.partition(self._format.closing)
        if not closing:
            return False
        if not self._format.trailer.fullmatch(between):
            parts.content += between
        if self._format.end is None:
            return self._leave(after)
        self._text, self._state = after, _State.HEADER
        return True

    def _say(self, text: str, parts: Parts) -> None:
        parts.content += text
        self._blank = self._blank and not text

    def _leave(self, rest: str) -> bool:
        self._text, self._opened, self._state, self._blank = rest, "", _State.TEXT, True
        return True

    def _begin(self, header: re.Match[str], rest: str, parts: Parts) -> None:
        own_id = header.groupdict().get("id")
        parts.calls.append(CallDelta(self._calls, header["name"], "", own_id))
        self._calls += 1
        self._span = JsonSpan()
        self._text, self._opened, self._state = rest, "", _State.ARGUMENTS

    def _give_up(self, parts: Parts) -> bool:
        """Once a call is closed whose header isn't one: perhaps its fields have another order."""
        if not self._format.closing:
            return self._give_up_before_the_next(parts)
        body, closing, after = self._text.partition(self._format.closing)
        if not closing:
            return False
        if self._format.end is None and self._recover(body, parts):
            return self._leave(after)
        self._blank = False
        parts.content += self._opened + body + closing
        self._text, self._opened, self._state = after, "", _State.TEXT
        return True

    def _give_up_before_the_next(self, parts: Parts) -> bool:
        body, opening, after = self._text.partition(self._format.opening)
        if not opening:
            return False
        self._blank = False
        parts.content += self._opened + body
        self._text, self._opened, self._state = opening + after, "", _State.TEXT
        return True

    def _recover(self, body: str, parts: Parts) -> bool:
        call = _json_object(body)
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(name := call.get("name"), str) or not isinstance(arguments, dict):
            return False
        try:
            found = as_call(name, arguments)
        except (ValueError, RecursionError):  # what it spells can't be sent
            return False
        parts.calls.append(CallDelta(self._calls, found.name, found.arguments))
        self._calls += 1
        return True


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class OneCall:
    """A text that is nothing but the arguments of a call whose name was given."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def push(self, text: str) -> Parts:
        if not text:
            return Parts()
        name, self._name = self._name, None
        return Parts(calls=[CallDelta(0, name, text)])

    def finish(self) -> Parts:
        return Parts()
