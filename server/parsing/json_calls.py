"""Calls that are JSON objects: `{"name": "f", "arguments": {...}}`, in whatever form."""

import json
import re

from server.parsing.feed import Feed, Reading, Tags
from server.parsing.json_repair import JsonCopier, copy_arguments
from server.parsing.offered import Offered
from server.parsing.out import Out

NAMES = frozenset({"name", "tool", "tool_name", "function_name", "function", "recipient_name"})
ARGUMENTS = frozenset({"arguments", "parameters", "args", "input", "kwargs"})
IDS = frozenset({"id", "call_id", "tool_call_id"})
OF_CALLS = NAMES | ARGUMENTS | IDS | {"type"}
BRACKETS = re.compile(r"[,;\]}]")
BETWEEN = re.compile(r"[\s,;\[\]}]*")
FIRST = re.compile(r"[\s\[]*")
MAX_KEY = 256
SHORTEST_ID = 9  # Mistral's; what is shorter numbers the calls of one answer


class JsonCalls:
    """Of one feed. closers: what ends a call, or all of them, and is read with it. openings: what
    does so too, and begins the next."""

    def __init__(
        self, feed: Feed, out: Out, offered: Offered, closers: Tags, openings: Tags
    ) -> None:
        self._feed = feed
        self._out = out
        self._offered = offered
        self._openings = openings
        self._closers = Tags(*closers.all, *openings.all)

    def read(self, strict: bool = False) -> Reading[bool]:
        """Calls one after another, up to a closer, which is read, or to what is none. strict: only
        such as have no other fields than a call's, since no tag has told of them."""
        feed, found = self._feed, False
        while True:
            feed.mark()
            yield from feed.run(BETWEEN if found else FIRST, _nowhere)
            closer = yield from feed.closing(self._closers)
            opens = (yield from feed.peek(1)) == "{"
            if found and closer:
                feed.kept()
                feed.take(0 if closer in self._openings.all else len(closer))
                return True
            call = _Call(feed, self._out, self._offered, self._closers)
            if not opens or not (yield from call.read(strict)):
                text = feed.kept()
                if found:  # brackets between calls are none of the text's
                    self._out.say(text if opens else BRACKETS.sub("", text))
                return found
            found = True
            feed.kept()


class _Call:
    """One object, whose fields may come in any order. Where it turns out to be no call nothing was
    given out."""

    def __init__(self, feed: Feed, out: Out, offered: Offered, closers: Tags) -> None:
        self._feed = feed
        self._out = out
        self._offered = offered
        self._closers = closers
        self._name: str | None = None
        self._id: str | None = None
        self._early: list[str] | None = None  # arguments that came before the name
        self._begun = False

    def read(self, strict: bool) -> Reading[bool]:
        self._feed.take(1)
        depth = 1  # of objects: OpenAI's form has one in another
        while depth:
            character = yield from self._next()
            if not character or character not in "{},\"'":
                break
            if character in "\"'":
                if not (yield from self._member(strict)):
                    return self._begun
                continue
            self._feed.take(1)
            depth += {"{": 1, "}": -1, ",": 0}[character]
        return (yield from self._end(closed=not depth))

    def _member(self, strict: bool) -> Reading[bool]:
        """A name and its value; False: this is no call."""
        key = yield from self._string(":")
        if key is None or (yield from self._next()) != ":":
            return False
        self._feed.take(1)
        value = yield from self._next()
        if strict and not self._begun and key not in OF_CALLS:
            return False
        if key in NAMES and value == "{":
            return True
        return (yield from self._field(key, value))

    def _next(self) -> Reading[str]:
        """The next character that isn't white; empty at the end and at a closer."""
        yield from self._feed.white()
        if (yield from self._feed.ahead(self._closers)):
            return ""
        return (yield from self._feed.peek(1))

    def _field(self, key: str, value: str) -> Reading[bool]:
        """False: this is no call."""
        if key in NAMES and self._name is None:
            written = (yield from self._string()) if value and value in "\"'" else None
            self._name = None if written is None else self._offered.match(written)
            if self._name is None:
                return False
            self._begin_late()
        elif key in ARGUMENTS and not self._begun and self._early is None:
            yield from self._arguments()
        elif key in IDS and value and value in "\"'":
            self._id = yield from self._string()
            if self._id is not None and len(self._id) < SHORTEST_ID:
                self._id = None
            if self._begun and self._id:
                self._out.rename(self._id)
        else:
            yield from JsonCopier(self._feed, _nowhere, self._closers).copy()
        return True

    def _arguments(self) -> Reading[None]:
        if self._name is not None:
            self._begin()
            yield from copy_arguments(self._feed, self._out.argue, self._closers)
        else:
            self._early = []
            yield from copy_arguments(self._feed, self._early.append, self._closers)

    def _begin(self) -> None:
        assert self._name is not None, "a call without a name"
        self._out.begin(self._name, self._id)
        self._begun = True

    def _begin_late(self) -> None:
        if self._early is not None:
            self._begin()
            self._out.argue("".join(self._early))

    def _end(self, closed: bool) -> Reading[bool]:
        at_closer = bool((yield from self._feed.ahead(self._closers)))
        if not self._begun and self._name is not None and (closed or at_closer):
            self._begin()
            self._out.argue("{}")
        return self._begun

    def _string(self, followers: str = ",}]") -> Reading[str | None]:
        """A short text; None where it isn't one."""
        pieces: list[str] = []
        yield from JsonCopier(self._feed, pieces.append, self._closers).text(followers)
        text = "".join(pieces)
        value = json.loads(text) if len(text) <= MAX_KEY else None
        return value if isinstance(value, str) else None


def _nowhere(text: str) -> None:
    """For what is read and not wanted."""
