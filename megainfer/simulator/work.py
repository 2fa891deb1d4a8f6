"""What a step asks of the stages, and how long stages take for it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Work:
    """One step of one micro-batch.

    rows: its tokens. prompt_rows: those of prompts among them. context: tokens of the cache that
    the other rows read, all together. pairs: of prompts' tokens and what each of them looks at, all
    together. tokens: how many it gives to clients.
    """

    rows: int
    prompt_rows: int = 0
    context: int = 0
    pairs: int = 0
    tokens: int = 0


class AttentionStage(Protocol):
    """Seconds of one layer's attention half, or of what an attention node does once a step."""

    def of_work(self, work: Work) -> float: ...


class RowStage(Protocol):
    """Seconds of what depends on rows alone: one layer's experts, a transfer."""

    def of(self, rows: int) -> float: ...


@dataclass(frozen=True)
class Cost:
    """Seconds of a stage by its rows; the fixed part of an expert's is reading its weights.

    per_context: a token of the cache that is read. per_pair: a pair of a prompt's tokens.
    """

    fixed: float
    per_row: float
    per_context: float = 0.0
    per_pair: float = 0.0

    def of(self, rows: int) -> float:
        return self.fixed + self.per_row * rows

    def of_work(self, work: Work) -> float:
        read = self.per_context * work.context + self.per_pair * work.pairs
        return self.of(work.rows) + read


FREE = Cost(0.0, 0.0)
