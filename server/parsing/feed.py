"""Text that comes in pieces, for readers that are written as if it were all there.

A reader is a generator. Where it can't be certain of what follows it waits (`yield`), until more of
the text has come or the text has ended; so what it finds doesn't depend on how the text was cut.
"""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

Found = TypeVar("Found")
Reading = Generator[None, None, Found]
Say = Callable[[str], object]

LONGEST = 256  # characters; no tag has as many
WHITE = re.compile(r"\s*")


class Tags:
    """Texts to look for, none of which begins another."""

    def __init__(self, *tags: str) -> None:
        self.all = tuple(dict.fromkeys(tags))
        self.firsts = frozenset(tag[0] for tag in self.all)
        self._longest = max(map(len, self.all), default=1)
        self._pattern = re.compile("|".join(map(re.escape, self.all)) or r"(?!)")

    def search(self, text: str, at: int) -> re.Match[str] | None:
        return self._pattern.search(text, at)

    def border(self, text: str, at: int) -> int:
        """Where one may be about to begin at the text's end; its length where none is."""
        for place in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[place] in self.firsts and self.may_be(text[place:]):
                return place
        return len(text)

    def may_be(self, beginning: str) -> bool:
        """Whether one goes on from this, or is it."""
        return any(tag.startswith(beginning) for tag in self.all)


class Feed:
    """What has come of a text and wasn't read yet: `text` from `at` on. trusts: whether a closing
    tag within a value may still be taken for a part of it; once that was wrong, no more."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.trusts = True
        self._records: list[list[str]] = []

    def add(self, piece: str) -> None:
        self.text = self.text[self.at :] + piece
        self.at = 0

    def take(self, count: int) -> str:
        """Read on."""
        taken = self.text[self.at : self.at + count]
        self.at += count
        for record in self._records:
            record.append(taken)
        return taken

    def mark(self) -> None:
        """From here on what is read is kept, until `kept` is called as often."""
        self._records.append([])

    def kept(self) -> str:
        """What was read since the last mark, which is forgotten."""
        return "".join(self._records.pop())

    def go_back(self) -> None:
        """To the last mark, which is forgotten."""
        text = self.kept()
        for record in self._records:
            record[:] = ["".join(record)[: -len(text) or None]]
        if self.at >= len(text):
            self.at -= len(text)
        else:
            self.text, self.at = text + self.text[self.at :], 0

    def peek(self, count: int) -> Reading[str]:
        """The next characters, fewer only at the end."""
        while len(self.text) - self.at < count and not self.ended:
            yield
        return self.text[self.at : self.at + count]

    def ahead(self, tags: Tags) -> Reading[str]:
        """The one of these with which the text goes on; empty where none does."""
        while True:
            tag = next((tag for tag in tags.all if self.text.startswith(tag, self.at)), "")
            if tag or self.ended or not tags.may_be(self.text[self.at : self.at + LONGEST]):
                return tag
            yield

    def closing(self, tags: Tags) -> Reading[str]:
        """The same for tags that close something; one that the text's end cuts off is one, too."""
        tag = yield from self.ahead(tags)
        rest = self.text[self.at : self.at + LONGEST]
        return tag or (rest if rest and tags.may_be(rest) else "")

    def run(self, pattern: re.Pattern[str], say: Say, most: int | None = None) -> Reading[None]:
        """Read all that a pattern of single characters matches, `most` of them at most."""
        while True:
            limit = len(self.text) if most is None else min(len(self.text), self.at + most)
            found = pattern.match(self.text, self.at, limit)
            if found is not None and found.end() > self.at:
                taken = self.take(found.end() - self.at)
                most = None if most is None else most - len(taken)
                say(taken)
            if self.at < len(self.text) or self.ended or most == 0:
                return
            yield

    def white(self) -> Reading[str]:
        """Read white space."""
        pieces: list[str] = []
        yield from self.run(WHITE, pieces.append)
        return "".join(pieces)

    def until(self, tags: Tags, say: Say) -> Reading[str]:
        """Read up to the first of these, which isn't read; empty where the text ends first."""
        while True:
            found = tags.search(self.text, self.at)
            end = len(self.text) if self.ended else tags.border(self.text, self.at)
            border = found.start() if found else end
            if border > self.at:
                say(self.take(border - self.at))
            if found or self.ended:
                return found.group() if found else ""
            yield


def read_whole(text: str, reader: Callable[[Feed], Reading[Found]]) -> Found:
    """What a reader finds in a text that is all there."""
    feed = Feed()
    feed.add(text)
    feed.ended = True
    reading = reader(feed)
    try:
        next(reading)
    except StopIteration as end:
        found: Found = end.value
        return found
    raise AssertionError("a reader waits at a text's end")
