"""Where things are in the memory that the ranks of a node share. Pure: no torch."""

from dataclasses import dataclass
from math import prod

from megainfer.config import DTYPE_BYTES

LINE_BYTES = 64
ORDER_NUMBERS = LINE_BYTES // 8
ID_BYTES = WEIGHT_BYTES = FLOAT_BYTES = 4
NUMBER_BYTES = 8
MEETING_BYTES = 1 << 16
_NUMBER_BYTES = {**DTYPE_BYTES, "int32": ID_BYTES, "int64": NUMBER_BYTES}


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
class Field:
    """Rows that ranks tell each other. offset: where, in a memory that has this layout. rows: at
    most. shape: of a row, () for a number. dtype: torch's name of it. number: by which both ends
    know it among those of its layout; in `given` it is at that place. widest: numbers of a row on
    the rank that has the most, which is not always this one. on_host: hosts look at it, also where
    ranks compute elsewhere.

    >>> Field(0, 0, 5, (3, 2), "bfloat16").row_bytes
    12
    >>> Field(0, 0, 5, (3,), "float32", widest=4).row_bytes
    16
    """

    number: int
    offset: int
    rows: int
    shape: tuple[int, ...]
    dtype: str
    widest: int = 0
    on_host: bool = False

    @property
    def row_bytes(self) -> int:
        """That a row has room in, as many on every rank."""
        return _NUMBER_BYTES[self.dtype] * max(prod(self.shape), self.widest)


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """Of an expert node: the rows, and what each rank but the first makes of them. rows: at most.
    dtype: of rows and results.

    >>> layout = RowsLayout(ranks=2, rows=3, hidden_size=8, top_k=2, dtype="float32")
    >>> [field.offset for field in (layout.hidden, layout.ids, layout.weights, layout.result(1))]
    [192, 320, 384, 448]
    >>> layout.total_bytes
    576
    """

    ranks: int
    rows: int
    hidden_size: int
    top_k: int
    dtype: str

    @property
    def hidden(self) -> Field:
        """dtype [rows, D]."""
        return self._hidden_at(0, first_offset(self.ranks))

    @property
    def ids(self) -> Field:
        """int32 [rows, K]."""
        return Field(1, self.hidden.offset + self._row_bytes, self.rows, (self.top_k,), "int32")

    @property
    def weights(self) -> Field:
        """float32 [rows, K]."""
        offset = self.ids.offset + lines(self.rows * self.top_k * ID_BYTES)
        return Field(2, offset, self.rows, (self.top_k,), "float32")

    @property
    def given(self) -> tuple[Field, ...]:
        """All that go with orders."""
        return self.hidden, self.ids, self.weights

    def result(self, rank: int) -> Field:
        """dtype [rows, D], of every rank but the first."""
        return self._hidden_at(3, self._result_offset(rank))

    @property
    def total_bytes(self) -> int:
        """Of address space; pages that no row was in take no memory."""
        return self._result_offset(self.ranks)

    def _hidden_at(self, number: int, offset: int) -> Field:
        return Field(number, offset, self.rows, (self.hidden_size,), self.dtype)

    def _result_offset(self, rank: int) -> int:
        first = self.weights.offset + lines(self.rows * self.top_k * WEIGHT_BYTES)
        return first + (rank - 1) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return lines(self.rows * self.hidden_size * DTYPE_BYTES[self.dtype])


@dataclass(frozen=True, slots=True)
class HalfLayout:
    """Of an attention node: a step as numbers, the rows that all compute, and what each rank but
    the first makes of them, rows or logits of its part of the vocabulary. rows: at most of a step.
    logit_rows: whose logits are computed at a time. vocabulary: tokens of the largest part.
    sequences, blocks: of a step, and of one of its sequences, at most. dtype: of rows and results.

    >>> layout = HalfLayout(
    ...     ranks=2, rows=2, hidden_size=8, logit_rows=1, vocabulary=32, sequences=2, blocks=3
    ... )
    >>> [field.offset for field in (layout.step, layout.residual, layout.result(1))]
    [192, 384, 448]
    >>> layout.step_numbers, layout.total_bytes
    (17, 576)
    """

    ranks: int
    rows: int
    hidden_size: int
    logit_rows: int
    vocabulary: int
    sequences: int
    blocks: int
    dtype: str = "float32"

    @property
    def step_numbers(self) -> int:
        """How many say what a step is: how many sequences, of each four numbers and its blocks, and
        the tokens."""
        return 1 + self.sequences * (4 + self.blocks) + self.rows

    @property
    def step(self) -> Field:
        """int64 [step_numbers]."""
        return Field(0, first_offset(self.ranks), self.step_numbers, (), "int64", on_host=True)

    @property
    def residual(self) -> Field:
        """dtype [rows, D]."""
        return Field(1, self._rows_offset, self.rows, (self.hidden_size,), self.dtype)

    @property
    def token_ids(self) -> Field:
        """int64 [rows], in the same place."""
        return Field(2, self._rows_offset, self.rows, (), "int64")

    @property
    def given(self) -> tuple[Field, ...]:
        """All that go with orders."""
        return self.step, self.residual, self.token_ids

    def result(self, rank: int) -> Field:
        """dtype [rows, D], of every rank but the first."""
        return Field(3, self._result_offset(rank), self.rows, (self.hidden_size,), self.dtype)

    def logits(self, rank: int, vocabulary: int) -> Field:
        """float32 [logit_rows, vocabulary], in the same place; vocabulary: how many are its own."""
        offset = self._result_offset(rank)
        return Field(4, offset, self.logit_rows, (vocabulary,), "float32", widest=self.vocabulary)

    @property
    def total_bytes(self) -> int:
        """Of address space; what is never written takes no memory."""
        return self._result_offset(self.ranks)

    @property
    def _rows_offset(self) -> int:
        return self.step.offset + lines(self.step_numbers * NUMBER_BYTES)

    @property
    def _row_bytes(self) -> int:
        """Room for either."""
        return lines(self.rows * max(self.hidden_size * DTYPE_BYTES[self.dtype], NUMBER_BYTES))

    def _result_offset(self, rank: int) -> int:
        logits = lines(self.logit_rows * self.vocabulary * FLOAT_BYTES)
        return self._rows_offset + self._row_bytes + (rank - 1) * max(self._row_bytes, logits)


def meeting_offsets(ranks: int, total_bytes: int) -> list[int]:
    """Behind a layout of so many bytes: where each rank leaves what groups are made by. Where none
    are made, it takes no memory."""
    return [total_bytes + rank * MEETING_BYTES for rank in range(ranks)]


def lines(size: int) -> int:
    """Rounded up to whole lines."""
    return -(-size // LINE_BYTES) * LINE_BYTES
