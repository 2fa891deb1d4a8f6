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
