"""Where what a reader finds goes to: content, thoughts and calls, in pieces."""

from server.parsing.parts import CallDelta, Parts
from server.parsing.reasoning import ThinkParser


class Out:
    """White space around calls is dropped. thoughts: splits what isn't a call; a call ends them."""

    def __init__(self, thoughts: ThinkParser | None = None) -> None:
        self.thoughts = thoughts
        self.calls = 0
        self.blank = True  # no content since the beginning, the last call or the end of thinking
        self._white: list[str] = []  # which is content only where content follows
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._deltas: list[CallDelta] = []

    @property
    def inside(self) -> bool:
        """Whether the text so far ends in reasoning."""
        return self.thoughts is not None and self.thoughts.thinking is True

    @property
    def thinking(self) -> bool | None:
        """See `ThinkParser.thinking`."""
        return self.thoughts.thinking if self.thoughts else False

    def say(self, text: str) -> None:
        """Text that is no call."""
        self._split(self.thoughts.push(text) if self.thoughts else Parts(content=text))

    def tell(self, text: str) -> None:
        """Content."""
        if self.blank:
            rest = text.lstrip()
            self._white.append(text[: len(text) - len(rest)])
            if not rest:
                return
            self._content += self._white
            self._white, self.blank, text = [], False, rest
        self._content.append(text)

    def think(self, text: str) -> None:
        """Reasoning."""
        self._reasoning.append(text)

    def begin(self, name: str, own_id: str | None = None) -> None:
        """A call."""
        if self.thoughts:
            self._split(self.thoughts.interrupt())
        self._deltas.append(CallDelta(self.calls, name, "", own_id))
        self.calls += 1
        self.blank, self._white = True, []

    def argue(self, text: str) -> None:
        """More of the last call's arguments."""
        if text:
            self._deltas.append(CallDelta(self.calls - 1, None, text))

    def rename(self, own_id: str) -> None:
        """The last call's id, if its beginning wasn't given out yet."""
        for place, delta in enumerate(self._deltas):
            if delta.index == self.calls - 1 and delta.name is not None:
                self._deltas[place] = CallDelta(delta.index, delta.name, "", own_id)

    def finish(self) -> None:
        if self.thoughts:
            self._split(self.thoughts.finish())
        if not self.calls:
            self._content += self._white

    def take(self) -> Parts:
        """What has come since the last time."""
        parts = Parts("".join(self._content), "".join(self._reasoning), self._deltas)
        self._content, self._reasoning, self._deltas = [], [], []
        return parts

    def _split(self, parts: Parts) -> None:
        if parts.reasoning:
            self.think(parts.reasoning)
        if parts.content:
            self.tell(parts.content)
