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
        self._white = ""  # what stands before the text, after the opening
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
            rest = self._opened + self._white + text
            if rest.strip(self._format.between) or not self._calls:
                parts.content += rest
        return parts

    # Each reads on as far as it is certain; True: the state has changed and there may be more.

    def _read_text(self, parts: Parts) -> bool:
        if self._blank:  # held: white space is content only where no call follows
            self._set_white_apart(self._text.lstrip())
        before, opening, after = self._text.partition(self._format.opening)
        border = len(before) - (0 if opening else overlap(before, self._format.opening))
        self._say(before[:border], parts)
        self._text = before[border:]
        if opening:
            white = self._white
            self._go_on(after, _State.HEADER)
            self._opened = white + opening
        return bool(opening)

    def _read_header(self, parts: Parts) -> bool:
        text, end = self._text.lstrip(self._format.between), self._format.end
        self._set_white_apart(text)
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

    def _set_white_apart(self, rest: str) -> None:
        """So that it is looked at once, however much there is."""
        self._white += self._text[: len(self._text) - len(rest)]
        self._text = rest

    def _say(self, text: str, parts: Parts) -> None:
        if text:
            parts.content += self._white + text
            self._white, self._blank = "", False

    def _leave(self, rest: str) -> bool:
        self._blank = True
        self._go_on(rest, _State.TEXT)
        return True

    def _go_on(self, rest: str, state: _State) -> None:
        self._text, self._opened, self._white, self._state = rest, "", "", state

    def _begin(self, header: re.Match[str], rest: str, parts: Parts) -> None:
        own_id = header.groupdict().get("id")
        parts.calls.append(CallDelta(self._calls, header["name"], "", own_id))
        self._calls += 1
        self._span = JsonSpan()
        self._go_on(rest, _State.ARGUMENTS)

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
        parts.content += self._opened + self._white + body + closing
        self._go_on(after, _State.TEXT)
        return True

    def _give_up_before_the_next(self, parts: Parts) -> bool:
        body, opening, after = self._text.partition(self._format.opening)
        if not opening:
            return False
        self._blank = False
        parts.content += self._opened + self._white + body
        self._go_on(opening + after, _State.TEXT)
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
