"""JSON as models write it, to JSON.

What is valid stays as it was written, white space included. All else becomes something valid, piece
by piece: line ends in texts, quotes of Python, names without quotes, commas too many or too few,
brackets that were never closed, numbers that no JSON has.
"""

import json
import math
import re
from typing import Any

from server.parsing.feed import Feed, Reading, Say, Tags, read_whole

MAX_DEPTH = 100  # readers of JSON have a limit; brackets beyond are left out
NO_TAGS = Tags()
BARE = re.compile(r"[^,}\])\n\r\"'{\[(<]*")
NAME = re.compile(r"[^\s,:={}\[\]()\"'<]*")
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
NEARLY_A_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
HEX = re.compile(r"[0-9a-fA-F]{4}")
OTHER_WHITE = re.compile(r"[^ \t\r\n]")
CLOSING = {"{": "}", "[": "]", "(": ")"}
WRITTEN = {"{": "{", "[": "[", "(": "[", "}": "}", "]": "]", ")": "]"}
WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), "true"),
    **dict.fromkeys(("false", "False", "FALSE"), "false"),
    **dict.fromkeys(("null", "None", "none", "nil", "undefined", "NaN"), "null"),
    **dict.fromkeys(("Infinity", "-Infinity", ""), "null"),
}
ESCAPES = frozenset('"\\/bfnrt')
UNKNOWN = "\\ufffd"


class JsonCopier:
    """Copies one value from a feed. closers: tags that end it wherever they stand outside of texts;
    within one, they do where the text doesn't go on as JSON."""

    def __init__(self, feed: Feed, say: Say, closers: Tags = NO_TAGS) -> None:
        self._feed = feed
        self._say = say
        self._closers = closers
        self._open: list[str] = []  # brackets
        self._owed: list[str] = []  # a comma that a value must follow, and what came since
        self._texts = {quote: self._run_of(quote) for quote in "\"'"}

    def _run_of(self, quote: str) -> re.Pattern[str]:
        stops = re.escape("".join({quote, '"', "\\", *self._closers.firsts}))
        return re.compile(rf"[^{stops}\x00-\x1f]*")

    def copy(self) -> Reading[None]:
        """A value, which begins here."""
        step = self._value
        while True:
            white = yield from self._feed.white()
            (self._owed.append if self._owed else self._say)(_blanks(white))
            character = yield from self._feed.peek(1)
            if not character or (yield from self._closes(character)):
                self._close_all(step == self._value, step == self._colon)
                return
            if character in "}])" and not self._open:
                if step == self._value:
                    self._say("null")
                return
            following = yield from step(character)
            if following is None:
                return
            step = following

    def _closes(self, character: str) -> Reading[bool]:
        return character in self._closers.firsts and bool(
            (yield from self._feed.ahead(self._closers))
        )

    # Each reads one thing and says what comes next; None: the value is whole.

    def _value(self, character: str) -> Reading[Any]:
        in_object = bool(self._open) and self._open[-1] == "{"
        if character in CLOSING:
            self._feed.take(1)
            if len(self._open) >= MAX_DEPTH:
                return self._value
            self._tell(WRITTEN[character])
            self._open.append(character)
            return self._key if character == "{" else self._value
        if character in "}])":
            return self._close(character, self._value, "null" if in_object else "")
        if character == "," and in_object:
            self._say("null")
            return self._after()
        if character in ",:=":
            self._feed.take(1)
            return self._value
        self._settle()
        if character in "\"'":
            yield from self.text(",}])")
        else:
            yield from self._word()
        return self._after()

    def _key(self, character: str) -> Reading[Any]:
        if character in "}])":
            return self._close(character, self._key)
        if character in "\"'":
            self._settle()
            yield from self.text(":=,}")
            return self._colon
        pieces: list[str] = []
        yield from self._feed.run(NAME, pieces.append)
        if pieces:
            self._tell(json.dumps("".join(pieces), ensure_ascii=False))
            return self._colon
        self._feed.take(1)
        return self._key

    def _colon(self, character: str) -> Reading[Any]:
        yield from ()
        if character in ",}])":
            self._say(": null")
            return self._after()
        if character in ":=":
            self._feed.take(1)
        self._say(":")
        return self._value

    def _comma(self, character: str) -> Reading[Any]:
        yield from ()
        if character in "}])":
            return self._close(character, self._comma)
        if character == "," or character in "\"'{[":
            self._owed = [","]
            if character == ",":
                self._feed.take(1)
            return self._key if self._open[-1] == "{" else self._value
        self._feed.take(1)  # what can't stand here
        return self._comma

    def _after(self) -> Any:
        return self._comma if self._open else None

    def _close(self, character: str, step: Any, missing: str = "") -> Any:
        """With all that is open within; a bracket that closes nothing is left out."""
        self._feed.take(1)
        opening = {closing: bracket for bracket, closing in CLOSING.items()}[character]
        if opening not in self._open:
            return step
        self._drop_comma()
        self._say(missing)
        while True:
            bracket = self._open.pop()
            self._say(WRITTEN[CLOSING[bracket]])
            if bracket == opening:
                return self._after()

    def _close_all(self, wants_value: bool, wants_colon: bool) -> None:
        self._drop_comma()
        in_object = bool(self._open) and self._open[-1] == "{"
        if wants_colon:
            self._say(": null")
        elif wants_value and (in_object or not self._open):
            self._say("null")
        for bracket in reversed(self._open):
            self._say(WRITTEN[CLOSING[bracket]])

    def _settle(self) -> None:
        for owed in self._owed:
            self._say(owed)
        self._owed = []

    def _drop_comma(self) -> None:
        self._owed = self._owed[1:]
        self._settle()

    def _tell(self, text: str) -> None:
        self._settle()
        self._say(text)

    def _word(self) -> Reading[None]:
        """A number, a name of a value, or a text without quotes."""
        pieces: list[str] = []
        while True:
            yield from self._feed.run(BARE, pieces.append)
            character = yield from self._feed.peek(1)
            if character in ("<", "(") and not (yield from self._closes(character)):
                pieces.append(self._feed.take(1))
            else:
                break
        self._say(_value_of("".join(pieces).strip()))

    def text(self, followers: str) -> Reading[None]:
        """A text, which begins here with a quote. followers: what may come after one."""
        quote = self._feed.take(1)
        self._say('"')
        white = yield from self._text_after(quote, followers)
        self._say('"' + white)

    def _text_after(self, quote: str, followers: str) -> Reading[str]:
        """Up to its end, which is read; the white space behind it."""
        feed = self._feed
        while True:
            yield from feed.run(self._texts[quote], self._say)
            character = yield from feed.peek(1)
            if not character:
                return ""
            if character == quote:
                white = yield from self._end_of_text(followers)
                if white is not None:
                    return white
            elif character in self._closers.firsts and (yield from feed.ahead(self._closers)):
                return (yield from self._go_on_beyond_a_tag(quote, followers))
            else:
                yield from self._odd(character)

    def _end_of_text(self, followers: str) -> Reading[str | None]:
        """None: the quote is one of the text's own, since nothing follows that could."""
        quote = self._feed.take(1)
        white = yield from self._feed.white()
        following = yield from self._feed.peek(1)
        if not following or following in followers or (yield from self._closes(following)):
            return _blanks(white)
        self._say(('\\"' if quote == '"' else quote) + json.dumps(white)[1:-1])
        return None

    def _go_on_beyond_a_tag(self, quote: str, followers: str) -> Reading[str]:
        """Whether a tag is the text's own shows once the text ends, with what may follow one."""
        feed, say = self._feed, self._say
        if not feed.trusts:
            return ""
        held: list[str] = []
        feed.mark()
        self._say = held.append
        while True:
            yield from feed.run(self._texts[quote], self._say)
            character = yield from feed.peek(1)
            if not character or character == quote:
                break
            yield from self._odd(character)
        white = yield from self._end_of_text(followers) if character else _nothing()
        self._say = say
        if white is None:
            feed.go_back()
            feed.trusts = False
            return ""
        feed.kept()
        for text in held:
            say(text)
        return white

    def _odd(self, character: str) -> Reading[None]:
        """A character of a text that may not stand there as it is."""
        feed = self._feed
        if character != "\\":
            feed.take(1)
            self._say(character if character >= " " and character != '"' else _escaped(character))
            return
        escape = yield from feed.peek(2)
        if escape[1:] == "u":
            yield from self._escape_by_number()
        elif escape[1:] in ESCAPES and escape[1:]:
            self._say(feed.take(2))
        elif escape[1:] == "'":
            feed.take(2)
            self._say("'")
        else:
            feed.take(1)
            self._say("\\\\" if escape[1:] else "")

    def _escape_by_number(self) -> Reading[None]:
        feed = self._feed
        escape = yield from feed.peek(6)
        if not HEX.fullmatch(escape[2:]):
            self._say("\\\\u" if len(escape) == 6 or not feed.ended else "")
            feed.take(2 if len(escape) == 6 else len(escape))
            return
        code = int(escape[2:], 16)
        if 0xD800 <= code < 0xDC00:
            pair = yield from feed.peek(12)
            if pair[6:8] == "\\u" and re.fullmatch("[dD][c-fC-F][0-9a-fA-F]{2}", pair[8:]):
                self._say(feed.take(12))
                return
        feed.take(6)
        self._say(UNKNOWN if 0xD800 <= code < 0xE000 else escape)


def copy_arguments(feed: Feed, say: Say, closers: Tags = NO_TAGS) -> Reading[None]:
    """The arguments of a call, which begin here, as an object."""
    character = yield from feed.peek(1)
    if character == "{":
        yield from JsonCopier(feed, say, closers).copy()
        return
    pieces: list[str] = []
    yield from JsonCopier(feed, pieces.append, closers).copy()
    say(object_of("".join(pieces)))


def object_of(text: str, depth: int = 2) -> str:
    """The object that a JSON text is, or spells, or holds alone; else an empty one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "{}"
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return repaired(value, depth - 1) if isinstance(value, str) and depth else "{}"


def repaired(text: str, depth: int = 2) -> str:
    """The object that a text was to be."""
    pieces: list[str] = []
    if text.lstrip().startswith("{"):
        read_whole(text.lstrip(), lambda feed: copy_arguments(feed, pieces.append))
        return "".join(pieces)
    return object_of(text, depth)


def _value_of(word: str) -> str:
    if word in WORDS:
        return WORDS[word]
    if NEARLY_A_NUMBER.fullmatch(word):
        number = float(word)
        if not math.isfinite(number):
            return "null"
        if NUMBER.fullmatch(word):
            return word
        return repr(number) if set(word) & set(".eE") else str(int(word))
    return json.dumps(word, ensure_ascii=False)


def _blanks(white: str) -> str:
    """JSON knows four kinds of white space."""
    return OTHER_WHITE.sub(" ", white)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def _nothing() -> Reading[str | None]:
    yield from ()
    return None
