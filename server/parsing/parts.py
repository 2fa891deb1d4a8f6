"""What parsers turn text into."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of the tool call number `index`: its name comes once and first, then its arguments,
    a JSON text in pieces. id: what the model calls the call, with its name, where it does."""

    index: int
    name: str | None
    arguments: str
    id: str | None = None


@dataclass(slots=True)
class Parts:
    """What some text contributed."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)

    def add(self, other: "Parts") -> None:
        """Append what came later."""
        self.content += other.content
        self.reasoning += other.reasoning
        self.calls += other.calls


@dataclass(slots=True)
class Call:
    """A whole tool call."""

    name: str = ""
    arguments: str = ""


class Parser(Protocol):
    """Takes a text in pieces. `push` gives what is certain by now, `finish` the rest."""

    def push(self, text: str) -> Parts: ...

    def finish(self) -> Parts: ...


class WholeParser(Parser, Protocol):
    """Of a whole answer, reasoning included."""

    @property
    def thinking(self) -> bool | None:
        """Whether the text so far ends in reasoning; None where that isn't certain yet."""
        ...


def whole_calls(deltas: Iterable[CallDelta]) -> list[Call]:
    """The calls that these pieces make up."""
    calls: dict[int, Call] = {}
    for delta in deltas:
        call = calls.setdefault(delta.index, Call())
        call.name += delta.name or ""
        call.arguments += delta.arguments
    return [calls[index] for index in sorted(calls)]
