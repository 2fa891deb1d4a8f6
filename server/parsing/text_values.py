"""Values that stand as texts between tags: where they end, and what JSON they are."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from megainfer.structured.schema import SchemaReader
from server.parsing.feed import Feed, Reading, Say, Tags
from server.parsing.typed import as_json, is_plainly_text, json_value, typed_value

KEY = re.compile(r"[^<>\n]*")
MAX_KEY = 200


@dataclass(frozen=True, slots=True)
class TextTags:
    """Tags that may end a value: its own, and those of what is around it."""

    value_ends: Tags
    keys: Tags
    call_ends: Tags
    calls: Tags
    outer: Tags
    closings: Tags

    @property
    def stops(self) -> Tags:
        return Tags(
            *self.value_ends.all,
            *self.keys.all,
            *self.call_ends.all,
            *self.closings.all,
            *self.outer.all,
        )


class ValueWriter:
    """Writes an object whose values come as texts. given: the names so far; of one that comes twice
    the first value stands."""

    def __init__(self, say: Say, schema: SchemaReader) -> None:
        self.given: set[str] = set()
        self._say = say
        self._schema = schema
        self._value: _Value | None = None

    def begin(self, key: str, is_text: bool | None, trims: bool) -> Say:
        """A value; who takes its text. is_text: whether its tag says that it is one. trims: a line
        end at either side belongs to the tags."""
        if key in self.given:
            self._value = None
            return _nowhere
        self._say((", " if self.given else "{") + as_json(key) + ": ")
        self.given.add(key)
        plain = is_plainly_text(self._schema, key) if is_text is None else is_text
        self._value = _Value(self._say, plain, trims)
        self._read = json_value if is_text is False else self._typed(key)
        return self._value.add

    def end(self, closed: bool) -> None:
        """Of the value. closed: by its own tag; else what follows stands on a line of its own."""
        if self._value is not None:
            self._value.end(self._read, closed)

    def close(self) -> None:
        """The object."""
        self._say("}" if self.given else "{}")

    def _typed(self, key: str) -> Callable[[str], Any]:
        return lambda text: typed_value(text, self._schema, key)


class _Value:
    """Of what is plainly a text each piece is given out, of anything else the whole."""

    def __init__(self, say: Say, plain: bool, trims: bool) -> None:
        self._say = say
        self._plain = plain
        self._trims = trims
        self._begun = False
        self._line_end = ""  # held: the last one belongs to the tag
        self._pieces: list[str] = []
        if plain:
            say('"')

    def add(self, text: str) -> None:
        text = self._line_end + text
        if self._trims and not self._begun and text:
            text, self._begun = text.removeprefix("\n"), True
        self._line_end = "\n" if text.endswith("\n") else ""
        self._tell(text.removesuffix("\n"))

    def _tell(self, text: str) -> None:
        if self._plain:
            self._say(as_json(text)[1:-1])
        else:
            self._pieces.append(text)

    def end(self, read: Callable[[str], Any], closed: bool) -> None:
        if closed and not self._trims:
            self._tell(self._line_end)
        self._say('"' if self._plain else as_json(read("".join(self._pieces))))


def copy_text(
    feed: Feed, write: Say, tags: TextTags, unused: Collection[str] | None
) -> Reading[bool]:
    """A value up to its end; the tag that closes it is read, others aren't. Whether there was one.

    Models write such tags within values as well, and leave them out. One is the end where what
    follows can follow one; else only if no better end comes. unused: names of which one, where a
    line begins, shows that the closing tag was left out; None: any.
    """
    last = ""

    def say(text: str) -> None:
        nonlocal last
        last = text[-1:]
        write(text)

    while tag := (yield from feed.until(tags.stops, say)):
        if tag in tags.keys.all:
            at_line = last in ("\n", "") or tag[-1] == ">"
            if at_line and (yield from _is_key(feed, tag, unused)):
                return False
        elif tag in tags.outer.all:
            if (yield from _is_followed(feed, tag, tags.calls)):
                return False
        else:
            certain = yield from _is_end(feed, tag, tags)
            if not certain and feed.trusts and (yield from _ends_later(feed, say, tags)):
                return True
            closes = tag in tags.value_ends.all
            feed.take(len(tag) if closes else 0)
            return closes
        say(feed.take(len(tag)))
    return False


def _is_end(feed: Feed, tag: str, tags: TextTags) -> Reading[bool]:
    after = [*tags.calls.all, *tags.outer.all]
    if tag not in tags.closings.all:
        after += tags.closings.all
    if tag in tags.value_ends.all:
        after += [*tags.keys.all, *tags.call_ends.all]
    return (yield from _is_followed(feed, tag, Tags(*after), at_end=True))


def _ends_later(feed: Feed, say: Say, tags: TextTags) -> Reading[bool]:
    """Whether a value that goes on beyond a tag is closed after all; then it is read."""
    held: list[str] = []
    feed.mark()
    while tag := (yield from feed.until(tags.stops, held.append)):
        if tag in tags.value_ends.all and (yield from _is_end(feed, tag, tags)):
            feed.kept()
            feed.take(len(tag))
            for text in held:
                say(text)
            return True
        if tag in tags.outer.all and (yield from _is_followed(feed, tag, tags.calls)):
            break
        held.append(feed.take(len(tag)))
    feed.go_back()
    feed.trusts = False
    return False


def _is_followed(feed: Feed, tag: str, by: Tags, at_end: bool = False) -> Reading[bool]:
    feed.mark()
    feed.take(len(tag))
    yield from feed.white()
    followed = bool((yield from feed.ahead(by)))
    ended = at_end and not (yield from feed.peek(1))
    feed.go_back()
    return followed or ended


def _is_key(feed: Feed, tag: str, unused: Collection[str] | None) -> Reading[bool]:
    feed.mark()
    feed.take(len(tag))
    pieces = [""]
    yield from feed.run(KEY, pieces.append, most=MAX_KEY)
    closed = yield from feed.peek(1)
    feed.go_back()
    name = "".join(pieces).strip().strip("\"'")
    return closed in (">", "<") and bool(name) and (unused is None or name in unused)


def _nowhere(text: str) -> None:
    """For what is read and not wanted."""
