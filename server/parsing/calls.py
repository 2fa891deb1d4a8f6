"""A model's answer, read from a feed: text up to where a call may begin, and the call."""

from collections.abc import Callable

from server.parsing.feed import WHITE, Feed, Reading, Say, Tags
from server.parsing.json_repair import copy_arguments
from server.parsing.out import Out
from server.parsing.parts import Parts

LINE_END, FENCE = "\n", "```"
Attempt = Callable[[], Reading[bool]]
"""Reads a call or several; False where there was none: what was read is in the feed's record."""


class FeedParser:
    """Runs a reader over a text that comes in pieces."""

    def __init__(self, read: Callable[[Feed, Out], Reading[None]], out: Out) -> None:
        self._feed = Feed()
        self._out = out
        self._reading = read(self._feed, out)

    @property
    def thinking(self) -> bool | None:
        """See `WholeParser.thinking`."""
        return self._out.thinking

    def push(self, text: str) -> Parts:
        self._feed.add(text)
        next(self._reading, None)
        return self._out.take()

    def finish(self) -> Parts:
        self._feed.ended = True
        for _ in self._reading:
            raise AssertionError("a reader waits at the text's end")
        self._out.finish()
        return self._out.take()


def read_answer(
    feed: Feed, out: Out, openings: Tags, tagged: Attempt, bare: Attempt, in_lines: bool
) -> Reading[None]:
    """A whole answer. openings: with which calls begin anywhere; `tagged` reads what begins with
    one. bare: reads calls that begin without, where nothing but white space came before; in_lines:
    or where a line begins that isn't the first of a block of code."""
    thoughts = out.thoughts.tags if out.thoughts else ()
    stops = Tags(*openings.all, *thoughts, *((LINE_END,) if in_lines else ()))
    lines = _Lines(out.say)
    while True:
        if (out.blank or lines.begins) and not out.inside:
            yield from feed.run(WHITE, lines.say)
            begun = yield from feed.ahead(stops)
            if not begun and (yield from attempt(feed, lines.say, bare)):
                continue
        tag = yield from feed.until(stops, lines.say)
        if not tag:
            return
        if tag in openings.all:
            yield from attempt(feed, lines.say, tagged)
        elif out.thoughts and out.thoughts.interrupted and tag == out.thoughts.tags[1]:
            feed.take(len(tag))  # of thoughts that a call has ended
        else:
            lines.say(feed.take(len(tag)))


class _Lines:
    """Says text. begins: whether a line does behind it, and not the first of a block of code."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._line: str | None = None  # what the last one begins with
        self._fenced = False

    @property
    def begins(self) -> bool:
        return self._line == "" and not self._fenced

    def say(self, text: str) -> None:
        self._say(text)
        for number, piece in enumerate(text.split(LINE_END)):
            if number:
                self._fenced = self._line == FENCE if self._line else self._fenced
                self._line = ""
            if self._line is not None:
                self._line = (self._line + (piece if self._line else piece.lstrip()))[: len(FENCE)]
            elif piece.strip():
                self._line = piece.lstrip()[: len(FENCE)]


def read_text(feed: Feed, out: Out) -> Reading[None]:
    """An answer without calls."""
    yield from feed.until(Tags(), out.say)


def read_one_call(feed: Feed, out: Out, name: str) -> Reading[None]:
    """An answer that is a call's arguments."""
    thoughts = Tags(*(out.thoughts.tags if out.thoughts else ()))
    while True:
        yield from feed.run(WHITE, out.say)
        if not out.inside and not (yield from feed.ahead(thoughts)):
            break
        tag = yield from feed.until(thoughts, out.say)
        if not tag:
            return
        out.say(feed.take(len(tag)))
    if (yield from feed.peek(1)):
        out.begin(name)
        yield from copy_arguments(feed, out.argue)
        yield from feed.until(Tags(), lambda text: None)


def attempt(feed: Feed, say: Say, read: Attempt) -> Reading[bool]:
    """What is no call is said, at least one character of it."""
    feed.mark()
    found = yield from read()
    text = feed.kept()
    if not found:
        say(text or feed.take(1))
    return found
