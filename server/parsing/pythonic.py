"""Calls as a list of Python's: `[f(x=1), g(y="a")]`."""

import re

from server.parsing.feed import Feed, Reading, Tags
from server.parsing.json_repair import JsonCopier
from server.parsing.offered import Offered
from server.parsing.out import Out
from server.parsing.typed import as_json

OPENING, CLOSING = "<|python_start|>", "<|python_end|>"
NAME = re.compile(r"[\w.\-]*")
BETWEEN = re.compile(r"[\s,;]*")
MAX_NAME = 200
CLOSERS = Tags(CLOSING)


class PythonicCalls:
    """Of one feed."""

    def __init__(self, feed: Feed, out: Out, offered: Offered) -> None:
        self._feed = feed
        self._out = out
        self._offered = offered

    def read(self) -> Reading[bool]:
        """A list of calls, with or without a tag before it."""
        feed, found = self._feed, False
        if (yield from feed.ahead(Tags(OPENING))):
            feed.take(len(OPENING))
            yield from feed.white()
        if (yield from feed.peek(1)) != "[":
            return False
        feed.take(1)
        while True:
            feed.mark()
            yield from feed.run(BETWEEN, _nowhere)
            if (yield from feed.peek(1)) == "]" and found:
                feed.kept()
                feed.take(1)
                yield from self._end()
                return True
            if not (yield from self._call()):
                text = feed.kept()
                if found:
                    self._out.say(text)
                return found
            feed.kept()
            found = True

    def _end(self) -> Reading[None]:
        self._feed.mark()
        yield from self._feed.white()
        if (yield from self._feed.ahead(CLOSERS)):
            self._feed.kept()
            self._feed.take(len(CLOSING))
        else:
            self._feed.go_back()

    def _call(self) -> Reading[bool]:
        feed, pieces = self._feed, [""]
        yield from feed.run(NAME, pieces.append, most=MAX_NAME)
        written = "".join(pieces)
        name = self._offered.match(written) if written else None
        if name is None or (yield from feed.peek(1)) != "(":
            return False
        feed.take(1)
        self._out.begin(name)
        schema = self._offered.schema(name)
        yield from self._arguments(schema.names(schema.root))
        return True

    def _arguments(self, names: list[str]) -> Reading[None]:
        """names: those that arguments without one have, in order; what has none is left out."""
        feed, given = self._feed, list[str]()
        while True:
            yield from feed.run(BETWEEN, _nowhere)
            character = yield from feed.peek(1)
            if not character or character in "])" or (yield from feed.ahead(CLOSERS)):
                break
            key = yield from self._key()
            key = key or next((name for name in names if name not in given), "")
            wanted = bool(key) and key not in given
            if wanted:
                self._out.argue(("{" if not given else ", ") + as_json(key) + ": ")
                given.append(key)
            say = self._out.argue if wanted else _nowhere
            yield from JsonCopier(feed, say, CLOSERS).copy()
            yield from self._skip_to_the_next()
        self._out.argue("}" if given else "{}")
        if character == ")":
            feed.take(1)

    def _skip_to_the_next(self) -> Reading[None]:
        """What stands behind a value and is none."""
        while (character := (yield from self._feed.peek(1))) and character not in ",)]":
            if (yield from self._feed.ahead(CLOSERS)):
                return
            self._feed.take(1)

    def _key(self) -> Reading[str]:
        """A name and an equals sign; empty, and nothing read, where there is none."""
        feed, pieces = self._feed, [""]
        feed.mark()
        yield from feed.run(NAME, pieces.append, most=MAX_NAME)
        yield from feed.white()
        if (yield from feed.peek(1)) == "=":
            feed.kept()
            feed.take(1)
            yield from feed.white()
            return "".join(pieces)
        feed.go_back()
        return ""


def _nowhere(text: str) -> None:
    """For what is read and not wanted."""
