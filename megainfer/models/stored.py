"""Where a weight lies in a checkpoint: a tensor on disk, or a part of one. Pure: no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """One weight, or a piece of one, as a part of a tensor that a checkpoint stores.

    The tensor is cut in this order: `index` picks an entry of its first axis (one expert of a
    fused [E, ...]), `transposed` swaps the two axes of what is left, and `rows` picks (start, stop,
    step) of the first axis of the result.

    name: of the tensor in the checkpoint as it is without quantisation; a quantised one stores
    several tensors under names that derive from it. shape: what results. stored: the whole tensor's
    shape; needed with `index` or `rows`, else it follows from `shape`. entries: where the first
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

    def __post_init__(self) -> None:
        uncut = self.index is None and self.rows is None
        assert uncut or self.stored is not None, f"{self.name}: part of a tensor of which shape?"
        assert not self.transposed or len(self.shape) == 2, f"{self.name}: only a matrix is turned"
        assert self.index is None or 0 <= self.index < self._split_shape[0], self
        assert self._turned(self.entry_shape)[1:] == self.shape[1:], self
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


Pieces = tuple[Source, ...]
"""Of one weight, to be concatenated along the first axis."""
