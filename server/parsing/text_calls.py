"""Calls whose arguments are texts between tags: Qwen3-Coder's, GLM's, MiniMax's, DeepSeek's."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from server.parsing.feed import Feed, Reading, Tags
from server.parsing.json_calls import JsonCalls
from server.parsing.json_repair import copy_arguments
from server.parsing.offered import Offered
from server.parsing.out import Out
from server.parsing.text_values import TextTags, ValueWriter, copy_text

MAX_NAME = 200
BARE_NAME = re.compile(r"[^\s\"'`<>{}\[\]\\,()=｜|]*")
ATTRIBUTES = re.compile(
    r"\s*[\"']?(?P<name>[^<>\"'\s]{1,128})[\"']?(?:\s+string=[\"']?(?P<text>true|false)[\"']?)?\s*"
)


@dataclass(frozen=True, slots=True)
class TextFormat:
    """outer: the tags around a call or several, each with the one that closes it. calls: what a
    call's tag begins with. call_ends: what closes it. keys: what an argument's tag begins with.
    bare_names: a name may stand behind the outer tag with no tag of its own; then
    keys stand between `<arg_key>` and `</arg_key>`."""

    outer: tuple[tuple[str, str], ...]
    calls: tuple[str, ...]
    call_ends: tuple[str, ...]
    keys: tuple[str, ...]
    value_ends: tuple[str, ...]
    bare_names: bool = False

    @property
    def openings(self) -> Tags:
        return Tags(*(opening for opening, _ in self.outer), *self.calls)

    @property
    def closings(self) -> tuple[str, ...]:
        return tuple(closing for _, closing in self.outer)


ARG_KEY, END_OF_KEY, ARG_VALUE, END_OF_VALUE = (
    *("<arg_key>", "</arg_key>"),
    *("<arg_value>", "</arg_value>"),
)
KEY, KEY_ENDS = re.compile(r"[^<>]*"), Tags(END_OF_KEY)
TOOL_CALL = TextFormat(
    (("<tool_call>", "</tool_call>"),),
    ("<function=", "<function name="),
    ("</function>",),
    ("<parameter=", "<parameter name=", ARG_KEY),
    ("</parameter>", END_OF_VALUE),
    bare_names=True,
)
"""All that is written within this tag, by Qwen, Hermes, Granite and GLM, so that one that writes as
another is understood."""
MINIMAX_M2 = TextFormat(
    (("<minimax:tool_call>", "</minimax:tool_call>"),),
    ("<invoke name=",),
    ("</invoke>",),
    ("<parameter name=",),
    ("</parameter>",),
)
MARK = "｜DSML｜"
DEEPSEEK_V32 = TextFormat(
    (
        (f"<{MARK}function_calls>", f"</{MARK}function_calls>"),
        (f"<{MARK}tool_calls>", f"</{MARK}tool_calls>"),
        (f"<{MARK}toolcalls>", f"</{MARK}toolcalls>"),
    ),
    (f"<{MARK}invoke name=",),
    (f"</{MARK}invoke>",),
    (f"<{MARK}parameter name=", "<parameter name="),
    (f"</{MARK}parameter>", "</parameter>"),
)


class TextCalls:
    """Of one feed."""

    def __init__(self, feed: Feed, out: Out, offered: Offered, written: TextFormat) -> None:
        self._feed = feed
        self._out = out
        self._offered = offered
        self._written = written
        self._outer = Tags(*(opening for opening, _ in written.outer))
        self._calls = Tags(*written.calls)
        self._keys = Tags(*written.keys)
        self._closings = Tags(*written.closings)
        self._call_ends = Tags(*written.call_ends)
        self._value_ends = Tags(*written.value_ends)
        self._within = Tags(*written.keys, *written.call_ends, *written.closings)
        self._objects = JsonCalls(feed, out, offered, self._closings, written.openings)
        self._values = TextTags(
            self._value_ends, self._keys, self._call_ends, self._calls, self._outer, self._closings
        )

    def tagged(self) -> Reading[bool]:
        """What begins with one of the openings."""
        feed = self._feed
        if outer := (yield from feed.ahead(self._outer)):
            feed.take(len(outer))
            yield from feed.white()
        character = yield from feed.peek(1)
        if outer and character and character in "[{":
            return (yield from self._objects.read())
        return (yield from self._some(bool(outer)))

    def _some(self, outer: bool) -> Reading[bool]:
        """One call or several, and what closes them."""
        feed = self._feed
        if not (yield from self._call(outer)):
            return False
        while (yield from self._another()):
            feed.mark()
            if not (yield from self._call(True)):
                self._out.say(feed.kept())
                return True
            feed.kept()
        return True

    def bare(self) -> Reading[bool]:
        """An object, or a name before its keys, whose tag is missing."""
        if (yield from self._feed.peek(1)) in ("{", "["):
            return (yield from self._objects.read(strict=True))
        if not self._written.bare_names:
            return False
        self._feed.mark()
        yield from self._feed.run(BARE_NAME, _nowhere, most=MAX_NAME)
        yield from self._feed.white()
        told = yield from self._feed.ahead(Tags(ARG_KEY, *self._written.closings))
        self._feed.go_back()
        return bool(told) and (yield from self._some(True))

    def _another(self) -> Reading[bool]:
        """Whether a further call follows; only a closing tag is read."""
        feed = self._feed
        feed.mark()
        yield from feed.white()
        closing = yield from feed.closing(self._closings)
        if closing:
            feed.kept()
            feed.take(len(closing))
            return False
        follows = bool((yield from feed.ahead(self._calls)))
        if follows:
            feed.kept()
        else:
            feed.go_back()
        return follows

    def _call(self, outer: bool) -> Reading[bool]:
        """One call; False where its name isn't offered, or nothing of a call follows the name."""
        feed = self._feed
        tag = yield from feed.ahead(self._calls)
        if tag:
            feed.take(len(tag))
            written = yield from self._attributes()
            name = written and self._offered.match(written["name"])
        elif outer and self._written.bare_names:
            name = yield from self._bare_name()
        else:
            return False
        if not name or not (yield from self._goes_on(name)):
            return False
        self._out.begin(name)
        if (yield from feed.peek(1)) == "{":
            yield from copy_arguments(
                feed, self._out.argue, Tags(*self._within.all, *self._written.openings.all)
            )
            yield from self._end_of_call()
        else:
            yield from self._arguments(name)
        return True

    def _bare_name(self) -> Reading[str | None]:
        """Of a tool; the first key may stand right behind it, where its tag was left out."""
        feed, pieces = self._feed, [""]
        feed.mark()
        yield from feed.run(BARE_NAME, pieces.append, most=MAX_NAME)
        word = "".join(pieces)
        if not (yield from feed.ahead(KEY_ENDS)):
            feed.kept()
            return self._offered.match(word)
        feed.go_back()
        name = self._offered.beginning(word)
        feed.take(len(name or ""))
        return name

    def _goes_on(self, name: str) -> Reading[bool]:
        """Whether a call's name is followed by what may follow one."""
        yield from self._feed.white()
        character = yield from self._feed.peek(1)
        if character in ("", "{") or (yield from self._feed.ahead(self._within)):
            return True
        schema = self._offered.schema(name)
        return (yield from self._is_key(schema.names(schema.root)))

    def _is_key(self, known: Collection[str]) -> Reading[bool]:
        """Whether a key follows whose own tag was left out."""
        if not self._written.bare_names:
            return False
        feed, pieces = self._feed, [""]
        feed.mark()
        yield from feed.run(KEY, pieces.append, most=MAX_NAME)
        ended = yield from feed.ahead(KEY_ENDS)
        feed.go_back()
        return bool(ended) and "".join(pieces).strip() in known

    def _attributes(self) -> Reading[re.Match[str] | None]:
        """Of a tag, up to its end, which is read."""
        feed, pieces = self._feed, [""]
        yield from feed.run(re.compile(r"[^<>\n]*"), pieces.append, most=MAX_NAME)
        if (yield from feed.peek(1)) != ">":
            return None
        feed.take(1)
        return ATTRIBUTES.fullmatch("".join(pieces))

    def _arguments(self, name: str) -> Reading[None]:
        feed = self._feed
        schema = self._offered.schema(name)
        known = frozenset(schema.names(schema.root))
        values = ValueWriter(self._out.argue, schema)
        while True:
            yield from feed.white()
            tag = yield from feed.ahead(self._keys)
            if tag or (yield from self._is_key(known)):
                feed.mark()
                feed.take(len(tag))
                tag = tag or ARG_KEY
                key = yield from self._key(tag)
                if key is None:
                    self._out.say(feed.kept())
                    break
                feed.kept()
                write = values.begin(key[0], key[1], trims=tag != ARG_KEY)
                unused = known - values.given if known else None
                closed = yield from copy_text(feed, write, self._values, unused)
                values.end(closed)
            elif tag := (yield from feed.ahead(self._value_ends)):
                feed.take(len(tag))  # one too many
            else:
                break
        values.close()
        yield from self._end_of_call()

    def _end_of_call(self) -> Reading[None]:
        yield from self._feed.white()
        if tag := (yield from self._feed.closing(self._call_ends)):
            self._feed.take(len(tag))

    def _key(self, tag: str) -> Reading[tuple[str, bool | None] | None]:
        """A name, and whether the tag says that its value is a text."""
        if tag != ARG_KEY:
            found = yield from self._attributes()
            return found and (found["name"], {"true": True, "false": False}.get(found["text"]))
        feed, pieces = self._feed, [""]
        yield from feed.run(KEY, pieces.append, most=MAX_NAME)
        if end := (yield from feed.ahead(KEY_ENDS)):
            feed.take(len(end))
        yield from feed.white()
        if begin := (yield from feed.ahead(Tags(ARG_VALUE))):
            feed.take(len(begin))
        key = "".join(pieces).strip()
        return (key, None) if key and (end or begin) else None


def _nowhere(text: str) -> None:
    """For what is read and not wanted."""
