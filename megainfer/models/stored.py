"""Where a weight lies in a checkpoint: a tensor on disk, or a part of one. Pure: no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Source:
    """One weight, or a piece of one, as a part of a tensor that a checkpoint stores.

    The tensor is cut in this order: `index` picks an entry of its first axis (one expert of a
    fused [E, ...]), `transposed` swaps the two axes of what is left, `rows` picks (start, stop,
    step) of the first axis of the result, and `columns` (start, stop) of a matrix's second.

    name: of the tensor in the checkpoint as it is without quantisation; a quantised one stores
    several tensors under names that derive from it. shape: what results. stored: the whole tensor's
    shape; needed with a cut, else it follows from `shape`. entries: where the first
    axis of what is stored is so many entries in a row ([E * F, ...]), which `index` picks from.
    integer: a table of whole numbers, not a weight.

    >>> gate = Source("gate_up", (3, 8), stored=(4, 8, 6), index=2, transposed=True, rows=(0, 6, 2))
    >>> gate.entry_shape, gate.picked
    ((8, 6), range(0, 6, 2))
    """

    name: str
    shape: tuple[int, ...]
    stored: tuple[int, ...] | None = None
    index: int | None = None
    transposed: bool = False
    rows: tuple[int, int, int] | None = None
    entries: int | None = None
    integer: bool = False
    columns: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        uncut = self.index is None and self.rows is None and self.columns is None
        assert uncut or self.stored is not None, f"{self.name}: part of a tensor of which shape?"
        assert not self.transposed or len(self.shape) == 2, f"{self.name}: only a matrix is turned"
        assert self.index is None or 0 <= self.index < self._split_shape[0], self
        assert self._cut(self._turned(self.entry_shape)[1:]) == self.shape[1:], self
        assert len(self.picked) == self.shape[0], self
        assert self.picked.start >= 0, self
        assert self.picked.stop <= self._turned(self.entry_shape)[0], self

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The whole tensor's."""
        return self._turned(self.shape) if self.stored is None else self.stored

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """Of what `index` picks: the whole tensor, or one entry of it, as it is stored."""
        return self.stored_shape if self.index is None else self._split_shape[1:]

    @property
    def _split_shape(self) -> tuple[int, ...]:
        """The whole tensor's, its first axis split into entries."""
        if self.entries is None:
            return self.stored_shape
        first, *others = self.stored_shape
        return (self.entries, first // self.entries, *others)

    @property
    def picked(self) -> range:
        """The rows that are wanted of the entry after `transposed`."""
        return range(*self.rows) if self.rows else range(self._turned(self.entry_shape)[0])

    def _turned(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[::-1] if self.transposed else shape

    def _cut(self, others: tuple[int, ...]) -> tuple[int, ...]:
        """The axes behind the first, as far as `columns` picks them."""
        if self.columns is None:
            return others
        start, stop = self.columns
        assert len(others) == 1, self
        assert 0 <= start <= stop <= others[0], self
        return (stop - start,)


Pieces = tuple[Source, ...]
"""Of one weight, to be concatenated along the first axis."""


def rows_of(pieces: Pieces, *parts: tuple[int, int]) -> Pieces:
    """These rows (start, stop) of a weight, one part after the other.

    >>> pieces = (Source("q", (4, 8)), Source("k", (2, 8)))
    >>> [(cut.name, cut.shape, cut.rows) for cut in rows_of(pieces, (3, 5))]
    [('q', (1, 8), (3, 4, 1)), ('k', (1, 8), (0, 1, 1))]
    """
    return tuple(cut for part in parts for cut in _rows_of(pieces, *part))


def _rows_of(pieces: Pieces, start: int, stop: int) -> Iterator[Source]:
    first = 0
    for piece in pieces:
        height = piece.shape[0]
        begin, end = max(start - first, 0), min(stop - first, height)
        first += height
        if begin < end:
            rows = piece.picked[begin:end]
            shape = (end - begin, *piece.shape[1:])
            picked = (rows[0], rows[-1] + 1, rows.step)
            yield replace(piece, shape=shape, stored=piece.stored_shape, rows=picked)
    assert stop <= first, f"rows {start} to {stop} of {first}"


def columns_of(pieces: Pieces, start: int, stop: int) -> Pieces:
    """These columns of a matrix.

    >>> [cut.shape for cut in columns_of((Source("out", (4, 8)),), 2, 5)]
    [(4, 3)]
    """
    assert all(piece.columns is None for piece in pieces), pieces
    return tuple(
        replace(
            piece,
            shape=(piece.shape[0], stop - start),
            stored=piece.stored_shape,
            columns=(start, stop),
        )
        for piece in pieces
    )
