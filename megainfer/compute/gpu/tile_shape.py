"""Which tiles a grouped product is cut into."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TileShape:
    """rows: choices of one expert that are multiplied together. outputs: channels of gate and as
    many of up, or of down. step: inputs at a time. warps, stages: of a program."""

    rows: int
    outputs: int
    step: int
    warps: int
    stages: int


INVARIANT_ROWS = 64
"""Of a row whose bits must not depend on what else is computed: what Hopper's and Blackwell's tensor
cores take at least. So many cost no time where weights are read for few."""


def tile_rows(rows_each: float, *, wide: bool, invariant: bool) -> int:
    """rows_each: choices an expert gets, if all get as many. wide: float32 is multiplied."""
    most = 32 if wide else 128
    if invariant:
        return min(INVARIANT_ROWS, most)
    return next((rows for rows in (16, 32, 64) if rows >= min(rows_each, most)), most)


def tile_shape(rows: int, chunk: int, *, gated: bool, packed: int, wide: bool) -> TileShape:
    """For tiles of so many rows. chunk: inputs by which rows of weights are filled up. gated: two
    products at a time. packed: weights in a byte or element, which are more than one where they
    share scales. wide: as for `tile_rows`."""
    if wide:
        return TileShape(rows, 32, chunk, 4, 2)
    if rows <= 32:
        return TileShape(rows, 64, chunk, 4, 4)
    many = rows > 64
    outputs = 64 if gated or packed > 1 else 128
    return TileShape(rows, outputs, chunk, 8 if many else 4, 3)
