"""Calls whose names stand before their arguments, between tags: DeepSeek's, Kimi's, Mistral's."""

import re
from dataclasses import dataclass

from server.parsing.feed import Feed, Reading, Tags
from server.parsing.json_calls import JsonCalls
from server.parsing.json_repair import copy_arguments
from server.parsing.offered import Offered
from server.parsing.out import Out

MAX_HEADER = 300
FENCE = "```"
NUMBERED = re.compile(r".+:\d{1,9}")
SPACE = re.compile(r"[\s,;]*")
BEHIND = re.compile(r"[\s}`]*")
NAME_CHARACTERS = re.compile(r"[\w.:/-]*")
WORD = r"[^\s\"'`<>{}\[\]\\,()｜|]{1,128}"


@dataclass(frozen=True, slots=True)
class HeadedFormat:
    """begins: tags around several calls, and before one. separators: tags within a header, of which
    one shows a call whose first tags are missing. ends: tags behind a call, and behind several.
    header: what stands before the arguments, as a whole; its groups are `name` and perhaps `id`.
    names_are_ids: of calls, where they are numbered."""

    begins: tuple[str, ...]
    separators: tuple[str, ...]
    ends: tuple[str, ...]
    header: re.Pattern[str]
    names_are_ids: bool = False

    @property
    def openings(self) -> Tags:
        return Tags(*self.begins)


DEEPSEEK = HeadedFormat(
    ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ("<｜tool▁sep｜>",),
    ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    re.compile(
        rf"(?:function\s*<｜tool▁sep｜>)?\s*(?P<name>{WORD})\s*(?:<｜tool▁sep｜>)?\s*"
        r"(?:```(?:json)?)?\s*(?:null|None)?\s*(?:```)?\s*"
    ),
)
"""V3 writes `function<｜tool▁sep｜>f` and fences around arguments, V3.1 `f<｜tool▁sep｜>`."""
KIMI_K2 = HeadedFormat(
    (
        *("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
        "<|tool_call_begin|>",
    ),
    ("<|tool_call_argument_begin|>",),
    (
        *("<|tool_call_end|>", "<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
        "<|tool_call_argument_end|>",
    ),
    re.compile(rf"\s*(?P<name>{WORD})\s*(?:<\|tool_call_argument_begin\|>)?\s*(?:null|None)?\s*"),
    names_are_ids=True,
)
MISTRAL = HeadedFormat(
    ("[TOOL_CALLS]",),
    ("[ARGS]", "[CALL_ID]"),
    ("[/TOOL_CALLS]",),
    re.compile(
        rf"\s*(?P<name>{WORD})\s*(?:\[CALL_ID\]\s*(?P<id>\w{{1,64}}))?\s*(?:\[ARGS\])?\s*(?:null)?\s*"
    ),
)
"""Of tokenizers from version 11 on; older ones have an array of objects behind the tag."""


class HeadedCalls:
    """Of one feed."""

    def __init__(self, feed: Feed, out: Out, offered: Offered, written: HeadedFormat) -> None:
        self._feed = feed
        self._out = out
        self._offered = offered
        self._written = written
        self._tags = Tags(*written.begins, *written.ends)
        self._stops = Tags("{", '"', *written.begins, *written.ends)
        self._separators = Tags(*written.separators)
        self._objects = JsonCalls(feed, out, offered, Tags(*written.ends), written.openings)

    def tagged(self) -> Reading[bool]:
        """Calls behind an opening tag."""
        feed, found = self._feed, False
        while True:
            last = yield from self._skip_tags()
            if found and last not in self._written.begins and not (yield from self._is_told()):
                return True
            feed.mark()
            opens = yield from self._opens()
            if not (yield from (self._objects.read() if opens else self._call())):
                text = feed.kept()
                if found:
                    self._out.say(text)
                return found
            feed.kept()
            found = True

    def bare(self) -> Reading[bool]:
        """A call whose tags before the name are missing, or objects."""
        if (yield from self._opens()):
            return (yield from self._objects.read(strict=True))
        return (yield from self._is_told()) and (yield from self.tagged())

    def _is_told(self) -> Reading[bool]:
        """Whether what follows is a header, without a tag that said so."""
        self._feed.mark()
        yield from self._feed.white()
        yield from self._feed.run(NAME_CHARACTERS, _nowhere, most=MAX_HEADER)
        told = yield from self._feed.ahead(self._separators)
        self._feed.go_back()
        return bool(told)

    def _opens(self) -> Reading[bool]:
        character = yield from self._feed.peek(1)
        return (
            bool(character) and character in "[{" and not (yield from self._feed.ahead(self._tags))
        )

    def _skip_tags(self) -> Reading[str]:
        """Read tags and white space before each; the last tag."""
        feed, last = self._feed, ""
        while True:
            feed.mark()
            yield from feed.run(SPACE, _nowhere)
            tag = yield from feed.closing(self._tags)
            if not tag:
                if last in self._written.begins:
                    feed.kept()
                else:
                    feed.go_back()
                return last
            feed.kept()
            last = feed.take(len(tag))

    def _call(self) -> Reading[bool]:
        pieces: list[str] = []
        if not (yield from self._header(pieces)):
            return False
        header = self._written.header.fullmatch("".join(pieces))
        name = header and self._offered.match(header["name"])
        if header is None or name is None:
            return False
        own_id = header.groupdict().get("id")
        if self._written.names_are_ids and NUMBERED.fullmatch(header["name"]):
            own_id = header["name"]
        self._out.begin(name, own_id)
        character = yield from self._feed.peek(1)
        if character and character in '{"':
            tags = Tags(*self._tags.all, FENCE) if FENCE in header[0] else self._tags
            yield from copy_arguments(self._feed, self._out.argue, tags)
            yield from self._behind()
        else:
            self._out.argue("{}")
        return True

    def _header(self, pieces: list[str]) -> Reading[bool]:
        """Up to where arguments begin or a tag says that there are none."""
        feed, left = self._feed, MAX_HEADER
        while True:
            found = self._stops.search(feed.text, feed.at)
            end = found.start() if found else self._stops.border(feed.text, feed.at)
            pieces.append(feed.take(min(end - feed.at, left)))
            left -= len(pieces[-1])
            if found and feed.at == end:
                return True
            if feed.ended or not left:
                return False
            yield

    def _behind(self) -> Reading[None]:
        """Fences and brackets too many, up to a tag."""
        feed = self._feed
        feed.mark()
        yield from feed.run(BEHIND, _nowhere)
        if (yield from feed.ahead(self._tags)) or not (yield from feed.peek(1)):
            feed.kept()
        else:
            feed.go_back()


def _nowhere(text: str) -> None:
    """For what is read and not wanted."""
