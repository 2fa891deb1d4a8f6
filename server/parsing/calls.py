"""A model's answer, read from a feed: text up to where a call may begin, and the call."""

from collections.abc import Callable

from server.parsing.feed import WHITE, Feed, Reading, Tags
from server.parsing.json_repair import copy_arguments
from server.parsing.out import Out
from server.parsing.parts import Parts

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
    feed: Feed, out: Out, openings: Tags, tagged: Attempt, bare: Attempt | None = None
) -> Reading[None]:
    """A whole answer. openings: with which calls begin anywhere; `tagged` reads what begins with
    one. bare: reads calls that begin without, where nothing but white space came before."""
    thoughts = out.thoughts.tags if out.thoughts else ()
    stops = Tags(*openings.all, *thoughts)
    while True:
        if bare is not None and out.blank and not out.inside:
            yield from feed.run(WHITE, out.say)
            if not (yield from feed.ahead(stops)) and (yield from attempt(feed, out, bare)):
                continue
        tag = yield from feed.until(stops, out.say)
        if not tag:
            return
        if tag in openings.all:
            yield from attempt(feed, out, tagged)
        elif out.thoughts and out.thoughts.interrupted and tag == out.thoughts.tags[1]:
            feed.take(len(tag))  # of thoughts that a call has ended
        else:
            out.say(feed.take(len(tag)))


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


def attempt(feed: Feed, out: Out, read: Attempt) -> Reading[bool]:
    """What is no call is said, at least one character of it."""
    feed.mark()
    found = yield from read()
    text = feed.kept()
    if not found:
        out.say(text or feed.take(1))
    return found
