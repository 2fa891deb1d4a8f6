"""An answer as a sequence of blocks (reasoning, text, calls), which two of the APIs speak of."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from server.narration.text_logprobs import Entries, TextLogprobs
from server.openai.piece import Piece


class Kind(Enum):
    REASONING = auto()
    TEXT = auto()
    CALL = auto()


class Step(Enum):
    OPENED = auto()
    GREW = auto()
    CLOSED = auto()


@dataclass(slots=True)
class Block:
    """text: so far; a call's is its arguments. call_id and name: of a call. logprobs: of a text's
    tokens, in the form of a chat, where they were asked for."""

    number: int
    kind: Kind
    call_id: str = ""
    name: str = ""
    text: str = ""
    call: int | None = None  # its number among the calls
    logprobs: Entries = field(default_factory=list)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # for an id of its own


@dataclass(frozen=True, slots=True)
class Change:
    """text: what was added, where it grew. logprobs: of its tokens."""

    step: Step
    block: Block
    text: str = ""
    logprobs: Entries = field(default_factory=list)


class Blocks:
    """Grows by pieces. At most one block is open."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None
        self._logprobs = TextLogprobs()

    def add(self, piece: Piece) -> Iterator[Change]:
        """What a piece changes, in order: first what goes on with the call that is open."""
        for call in piece.calls:
            if call.name is None:
                yield from self._grow(Kind.CALL, call.arguments)
        if piece.reasoning:
            yield from self._grow(Kind.REASONING, piece.reasoning)
        logprobs = self._logprobs.of(piece)
        if piece.text:
            yield from self._grow(Kind.TEXT, piece.text, logprobs)
        for call in piece.calls:
            if call.name is not None:
                new = Block(len(self.all), Kind.CALL, call.id or "", call.name, call=call.index)
                yield from self._begin(new)
                yield from self._grow(Kind.CALL, call.arguments)

    def close(self) -> Iterator[Change]:
        """Nothing more comes."""
        if self._open is not None:
            yield Change(Step.CLOSED, self._open)
            self._open = None

    def _grow(self, kind: Kind, text: str, logprobs: Entries | None = None) -> Iterator[Change]:
        if self._open is None or self._open.kind is not kind:
            yield from self._begin(Block(len(self.all), kind))
        assert self._open is not None
        self._open.text += text
        self._open.logprobs += logprobs or []
        if text:
            yield Change(Step.GREW, self._open, text, logprobs or [])

    def _begin(self, block: Block) -> Iterator[Change]:
        yield from self.close()
        self.all.append(block)
        self._open = block
        yield Change(Step.OPENED, block)
