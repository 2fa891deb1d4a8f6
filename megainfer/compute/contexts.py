"""What the rows of a step attend to: by kind of row, and by sequence."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Decodes:
    """The sequences that have one token in the step: rows 0 to S - 1.

    block_table: int64 [S, blocks], padded with each sequence's own first block, so that nobody's
    values reach another sequence even multiplied by zero. mask: bool [S, 1, 1, L], true where
    position l exists; L is the longest context.
    """

    block_table: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Prefill:
    """A sequence with several tokens in the step: rows `start` to `stop` - 1.

    blocks: int64 [blocks], where its context of `context` tokens lies, the last block maybe partly.
    """

    start: int
    stop: int
    blocks: Tensor
    context: int


class SequenceRows(NamedTuple):
    """A sequence's rows, `start` to `stop` - 1, whose first is its token at `first_position`."""

    start: int
    stop: int
    first_position: int
    state_slot: int


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring sequences of a step, for kernels that take them all in one launch.

    On the device: row_starts, int64 [S + 1], block_table, int64 [S, blocks], state_slots, int64
    [S]; as those of the step, whose rows they count from its beginning.

    On the host, which bounds a launch by them: rows, those of these sequences; most_rows, of the
    longest of them; context, the tokens that the longest one then has.
    """

    row_starts: Tensor
    block_table: Tensor
    state_slots: Tensor
    rows: slice
    most_rows: int
    context: int

    @property
    def count(self) -> int:
        """How many sequences."""
        return len(self.state_slots)

    @property
    def num_rows(self) -> int:
        return int(self.rows.stop - self.rows.start)
