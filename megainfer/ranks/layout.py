"""Where things are in the memory that the ranks of an expert node share. Pure: no torch."""

from dataclasses import dataclass

from megainfer.config import DTYPE_BYTES

LINE_BYTES = 64
ID_BYTES = WEIGHT_BYTES = 4


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """A line with a word a rank, a line that says what is to be computed, then the rows, and what
    each rank but the first makes of them. rows: at most. dtype: of rows and results.

    >>> layout = RowsLayout(ranks=2, rows=3, hidden_size=8, top_k=2, dtype="float32")
    >>> layout.order, layout.hidden, layout.ids, layout.weights, layout.result(1)
    (128, 192, 320, 384, 448)
    >>> layout.total_bytes
    576
    """

    ranks: int
    rows: int
    hidden_size: int
    top_k: int
    dtype: str

    def word(self, rank: int) -> int:
        """Offset of this rank's word."""
        return rank * LINE_BYTES

    @property
    def order(self) -> int:
        """Offset of the order of rank 0, int64 [8]."""
        return self.word(self.ranks)

    @property
    def hidden(self) -> int:
        """Offset of dtype [rows, D]."""
        return self.order + LINE_BYTES

    @property
    def ids(self) -> int:
        """Offset of int32 [rows, K]."""
        return self.hidden + self._row_bytes

    @property
    def weights(self) -> int:
        """Offset of float32 [rows, K]."""
        return self.ids + _lines(self.rows * self.top_k * ID_BYTES)

    def result(self, rank: int) -> int:
        """Offset of dtype [rows, D], for every rank but the first."""
        first = self.weights + _lines(self.rows * self.top_k * WEIGHT_BYTES)
        return first + (rank - 1) * self._row_bytes

    @property
    def total_bytes(self) -> int:
        """Of address space; pages that no row was in take no memory."""
        return self.result(self.ranks)

    @property
    def _row_bytes(self) -> int:
        return _lines(self.rows * self.hidden_size * DTYPE_BYTES[self.dtype])


def _lines(size: int) -> int:
    """Rounded up to whole lines."""
    return -(-size // LINE_BYTES) * LINE_BYTES
