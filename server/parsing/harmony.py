"""gpt-oss's answers: messages on channels, some of which are calls.

<|channel|>analysis<|message|>...<|end|>
<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>
<|start|>assistant<|channel|>final<|message|>...<|return|>
"""

import re
from enum import Enum, auto

from megainfer.text.detokenizer import overlap
from server.parsing.formats import NAME
from server.parsing.parts import CallDelta, Parts

CHANNEL_TAG, MESSAGE, END = "<|channel|>", "<|message|>", "<|end|>"
FINAL = f"{CHANNEL_TAG}final{MESSAGE}"
"""What opens the answer itself."""
ENDS = (END, "<|call|>", "<|return|>")
OPENINGS = ("<|start|>", CHANNEL_TAG)
HEADERS = (*OPENINGS, "<|constrain|>", MESSAGE, "to=functions.")
BODY_ENDS = (*ENDS, *OPENINGS)
CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
RECIPIENT = re.compile(rf"\bto=(?:functions\.{NAME}|\S)")


class _State(Enum):
    BETWEEN = auto()  # before a message
    HEADER = auto()  # before its <|message|>
    BODY = auto()


class _Kind(Enum):
    """What a message's body is."""

    CONTENT = auto()
    REASONING = auto()
    CALL = auto()


class HarmonyParser:
    """Splits a text into reasoning (analysis, and what goes to tools that nobody offered), content
    (final, commentary to the reader, and what has no channel) and calls, whose arguments stream.

    with_calls: else what would be a call's arguments is content. The tags are special tokens,
    which must be spelled out to be seen. A header that was never completed is dropped.
    """

    def __init__(self, with_calls: bool) -> None:
        self._with_calls = with_calls
        self._state = _State.BETWEEN
        self._kind = _Kind.CONTENT
        self._white = ""  # what stands before the text, between messages
        self._text = ""  # not given out yet
        self._calls = 0
        self._begun = False  # whether a message has
        self._blank = True  # the body so far
        self._steps = {
            _State.BETWEEN: self._read_between,
            _State.HEADER: self._read_header,
            _State.BODY: self._read_body,
        }

    def push(self, text: str) -> Parts:
        self._text += text
        parts = Parts()
        while self._steps[self._state](parts):
            pass
        return parts

    def finish(self) -> Parts:
        parts, text = Parts(), self._white + self._text
        self._white = self._text = ""
        if self._state is _State.BODY:
            self._say(text, parts)
            self._end(parts)
        elif "<|" not in text and not self._begun:
            parts.content += text
        return parts

    @property
    def thinking(self) -> bool | None:
        """Whether the text so far ends in reasoning; None before the first message."""
        if not self._begun:
            return None
        return self._state is _State.BODY and self._kind is _Kind.REASONING

    # Each reads on as far as it is certain; True: the state has changed and there may be more.

    def _read_between(self, parts: Parts) -> bool:
        start = self._text.lstrip()
        self._white += self._text[: len(self._text) - len(start)]
        self._text = start
        if end := next((tag for tag in ENDS if start.startswith(tag)), None):
            self._white, self._text = "", start.removeprefix(end)
            return True
        if any(start.startswith(tag) for tag in HEADERS):
            self._white, self._state = "", _State.HEADER
            return True
        if any(tag.startswith(start) for tag in (*HEADERS, *ENDS)):
            return False
        self._white, self._text = "", self._white + start
        self._begin(_Kind.CONTENT)
        return True

    def _read_header(self, parts: Parts) -> bool:
        header, found, body = self._text.partition(MESSAGE)
        if not found:
            return False
        self._text = body
        recipient, channel = RECIPIENT.search(header), CHANNEL.search(header)
        name = recipient and recipient["name"]
        if name and self._with_calls:
            parts.calls.append(CallDelta(self._calls, name, ""))
            self._calls += 1
            self._begin(_Kind.CALL)
        else:
            thought = channel is not None and channel[1] == "analysis"
            elsewhere = recipient is not None and name is None
            self._begin(_Kind.REASONING if thought or elsewhere else _Kind.CONTENT)
        return True

    def _read_body(self, parts: Parts) -> bool:
        places = [(place, tag) for tag in BODY_ENDS if (place := self._text.find(tag)) >= 0]
        if not places:
            border = len(self._text) - max(overlap(self._text, tag) for tag in BODY_ENDS)
            self._say(self._text[:border], parts)
            self._text = self._text[border:]
            return False
        place, tag = min(places)
        self._say(self._text[:place], parts)
        self._end(parts)
        self._text = self._text[place:].removeprefix(tag if tag in ENDS else "")
        self._state = _State.BETWEEN
        return True

    def _begin(self, kind: _Kind) -> None:
        self._state, self._kind, self._begun = _State.BODY, kind, True
        self._blank = True

    def _end(self, parts: Parts) -> None:
        """A call without arguments has none, which JSON spells so."""
        if self._kind is _Kind.CALL and self._blank:
            parts.calls.append(CallDelta(self._calls - 1, None, "{}"))

    def _say(self, text: str, parts: Parts) -> None:
        self._blank = self._blank and not text.strip()
        match self._kind:
            case _Kind.CONTENT:
                parts.content += text
            case _Kind.REASONING:
                parts.reasoning += text
            case _Kind.CALL if text:
                parts.calls.append(CallDelta(self._calls - 1, None, text))
