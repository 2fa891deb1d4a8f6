"""Where things are in the memory that the ranks of a node share. Pure: no torch."""

from dataclasses import dataclass

from megainfer.config import DTYPE_BYTES

LINE_BYTES = 64
ORDER_NUMBERS = LINE_BYTES // 8
ID_BYTES = WEIGHT_BYTES = FLOAT_BYTES = 4
NUMBER_BYTES = 8


def word_offset(rank: int) -> int:
    """Of this rank's word: the memory begins with a line for each."""
    return rank * LINE_BYTES


def order_offset(ranks: int) -> int:
    """Of the order of rank 0, int64 [ORDER_NUMBERS]."""
    return word_offset(ranks)


def first_offset(ranks: int) -> int:
    """Of what comes behind words and order."""
    return order_offset(ranks) + LINE_BYTES


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """Of an expert node: the rows, and what each rank but the first makes of them. rows: at most.
    dtype: of rows and results.

    >>> layout = RowsLayout(ranks=2, rows=3, hidden_size=8, top_k=2, dtype="float32")
    >>> layout.hidden, layout.ids, layout.weights, layout.result(1), layout.total_bytes
    (192, 320, 384, 448, 576)
    """

    ranks: int
    rows: int
    hidden_size: int
    top_k: int
    dtype: str

    @property
    def hidden(self) -> int:
        """Offset of dtype [rows, D]."""
        return first_offset(self.ranks)

    @property
    def ids(self) -> int:
        """Offset of int32 [rows, K]."""
        return self.hidden + self._row_bytes

    @property
    def weights(self) -> int:
        """Offset of float32 [rows, K]."""
        return self.ids + lines(self.rows * self.top_k * ID_BYTES)

    def result(self, rank: int) -> int:
        """Offset of dtype [rows, D], for every rank but the first."""
        first = self.weights + lines(self.rows * self.top_k * WEIGHT_BYTES)
        return first + (rank - 1) * self._row_bytes

    @property
    def total_bytes(self) -> int:
        """Of address space; pages that no row was in take no memory."""
        return self.result(self.ranks)

    @property
    def _row_bytes(self) -> int:
        return lines(self.rows * self.hidden_size * DTYPE_BYTES[self.dtype])


@dataclass(frozen=True, slots=True)
class HalfLayout:
    """Of an attention node: a step as numbers, the rows that all compute, and what each rank but
    the first makes of them, rows or logits of its part of the vocabulary. rows: at most of a step.
    logit_rows: whose logits are computed at a time. vocabulary: tokens of the largest part.
    sequences, blocks: of a step, and of one of its sequences, at most.

    >>> layout = HalfLayout(
    ...     ranks=2, rows=2, hidden_size=8, logit_rows=1, vocabulary=32, sequences=2, blocks=3
    ... )
    >>> layout.step_numbers, layout.step, layout.rows_at, layout.result(1), layout.total_bytes
    (17, 192, 384, 448, 576)
    """

    ranks: int
    rows: int
    hidden_size: int
    logit_rows: int
    vocabulary: int
    sequences: int
    blocks: int

    @property
    def step_numbers(self) -> int:
        """How many say what a step is: how many sequences, of each four numbers and its blocks, and
        the tokens."""
        return 1 + self.sequences * (4 + self.blocks) + self.rows

    @property
    def step(self) -> int:
        """Offset of int64 [step_numbers]."""
        return first_offset(self.ranks)

    @property
    def rows_at(self) -> int:
        """Offset of float32 [rows, D], or int64 [rows]."""
        return self.step + lines(self.step_numbers * NUMBER_BYTES)

    @property
    def _row_bytes(self) -> int:
        """Room for either."""
        return lines(self.rows * max(self.hidden_size * FLOAT_BYTES, NUMBER_BYTES))

    def result(self, rank: int) -> int:
        """Offset of float32 [rows, D] or [logit_rows, vocabulary], for every rank but the first."""
        logits = lines(self.logit_rows * self.vocabulary * FLOAT_BYTES)
        return self.rows_at + self._row_bytes + (rank - 1) * max(self._row_bytes, logits)

    @property
    def total_bytes(self) -> int:
        """Of address space; what is never written takes no memory."""
        return self.result(self.ranks)


def lines(size: int) -> int:
    """Rounded up to whole lines."""
    return -(-size // LINE_BYTES) * LINE_BYTES
