"""gpt-oss's answers: messages on channels, some of which are calls.

<|channel|>analysis<|message|>...<|end|>
<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>
<|start|>assistant<|channel|>final<|message|>...<|return|>
"""

import re

from server.parsing.feed import Feed, Reading, Say, Tags
from server.parsing.json_repair import copy_arguments
from server.parsing.offered import Offered
from server.parsing.out import Out

CHANNEL_TAG, MESSAGE, END = "<|channel|>", "<|message|>", "<|end|>"
FINAL = f"{CHANNEL_TAG}final{MESSAGE}"
"""What opens the answer itself."""
ENDS = (END, "<|call|>", "<|return|>")
OPENINGS = ("<|start|>", CHANNEL_TAG)
HEADERS = Tags(*OPENINGS, "<|constrain|>", MESSAGE, "to=")
ENDS_OF_BODIES = Tags(*ENDS, *OPENINGS)
ENDS_OF_HEADERS = Tags(MESSAGE, *ENDS)
CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
RECIPIENT = re.compile(r"\bto=\s*([^\s<]+)")
CONSTRAINT = re.compile(r"<\|constrain\|>\s*([^\s<]+)")
WITHOUT_MESSAGE = re.compile(
    r"\s*(?:<\|start\|>\s*\w*)?\s*(?:to=\S+\s*)?(?:<\|channel\|>\s*\w*)?\s*(?:to=[^\s<]+)?"
    r"\s*(?:<\|constrain\|>\s*\w*)?"
)
MAX_HEADER = 400


class HarmonyOut(Out):
    """Messages say themselves what they are. thinking: None before the first."""

    state: bool | None = None

    @property
    def thinking(self) -> bool | None:
        return self.state


class HarmonyMessages:
    """Splits a text into reasoning (analysis, and what goes to tools that nobody offered), content
    (final, commentary to the reader, and what has no channel) and calls, whose arguments stream.

    offered: None: what would be a call's arguments is content. The tags are special tokens,
    which must be spelled out to be seen. A header that was never completed is dropped.
    """

    def __init__(self, feed: Feed, out: HarmonyOut, offered: Offered | None) -> None:
        self._feed = feed
        self._out = out
        self._offered = offered

    def read(self) -> Reading[None]:
        feed = self._feed
        while True:
            feed.mark()
            yield from feed.white()
            if end := (yield from feed.ahead(Tags(*ENDS))):
                feed.kept()
                feed.take(len(end))
            elif not (yield from feed.peek(1)):
                white = feed.kept()
                if self._out.state is None:
                    self._out.tell(white)
                return
            elif (yield from feed.ahead(HEADERS)):
                feed.kept()
                yield from self._message()
            elif feed.ended and self._is_cut_off():
                feed.kept()
                return
            else:
                feed.go_back()
                yield from self._body(self._out.tell, thinking=False)

    def _is_cut_off(self) -> bool:
        """Whether the text ends within a tag; as the very first it may be a text's own."""
        rest = self._feed.text[self._feed.at :]
        return rest.startswith("<|") and Tags(*HEADERS.all, *ENDS).may_be(rest)

    def _message(self) -> Reading[None]:
        """A header, which is ahead, and its body."""
        pieces: list[str] = []
        whole = yield from self._header(pieces)
        header = "".join(pieces)
        if whole is None:
            if self._out.state is None and "<|" not in header:
                self._out.tell(header)
            return
        before = "" if whole else header[_end_of(header) :]
        name, elsewhere = self._recipient(header)
        channel = CHANNEL.search(header)
        if name is not None:
            yield from self._call(name)
        elif elsewhere or (channel is not None and channel[1] == "analysis"):
            yield from self._body(self._out.think, thinking=True, before=before)
        else:
            yield from self._body(self._out.tell, thinking=False, before=before)

    def _header(self, pieces: list[str]) -> Reading[bool | None]:
        """Whether it is ended by its own tag; None where the text ends within."""
        feed, left = self._feed, MAX_HEADER
        while True:
            found = ENDS_OF_HEADERS.search(feed.text, feed.at)
            end = found.start() if found else ENDS_OF_HEADERS.border(feed.text, feed.at)
            pieces.append(feed.take(min(end - feed.at, left)))
            left -= len(pieces[-1])
            if found and feed.at == end:
                return bool(feed.take(len(MESSAGE))) if found.group() == MESSAGE else False
            if not left:
                return False
            if feed.ended:
                pieces.append(feed.take(len(feed.text) - feed.at))
                return None
            yield

    def _recipient(self, header: str) -> tuple[str | None, bool]:
        """The tool that is called, and whether it goes to somebody else than the reader."""
        named = RECIPIENT.search(header)
        if self._offered is None:
            functions = named is not None and named[1].startswith("functions")
            return None, named is not None and not functions
        constraint = CONSTRAINT.search(header)
        if named is None and constraint is not None and "." in constraint[1]:
            named = constraint
        name = named and self._offered.match(named[1])
        return name, named is not None

    def _call(self, name: str) -> Reading[None]:
        feed, out = self._feed, self._out
        out.begin(name)
        out.state = False
        yield from feed.white()
        if not (yield from feed.peek(1)) or (yield from feed.ahead(ENDS_OF_BODIES)):
            out.argue("{}")
        else:
            yield from copy_arguments(feed, out.argue, ENDS_OF_BODIES)
        yield from feed.until(ENDS_OF_BODIES, lambda text: None)

    def _body(self, say: Say, thinking: bool, before: str = "") -> Reading[None]:
        """before: what of it was read with its header."""
        self._out.state = thinking
        say(before)
        yield from self._feed.until(ENDS_OF_BODIES, say)
        if thinking:
            self._out.state = not (yield from self._feed.peek(1))


def _end_of(header: str) -> int:
    found = WITHOUT_MESSAGE.match(header)
    return found.end() if found else 0
