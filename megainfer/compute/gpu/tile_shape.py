"""Which tiles a grouped product is cut into."""

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class TileShape:
    """rows: choices of one expert that are multiplied together. outputs: channels of gate and as
    many of up, or of down. step: inputs at a time. warps, stages: of a program. resident: how many
    programs a multiprocessor has room for at a time, by their registers and shared memory."""

    rows: int
    outputs: int
    step: int
    warps: int
    stages: int
    resident: int


INVARIANT_ROWS = 64
"""Of tiles where bits must not depend on what else is computed: what the tensor cores of Hopper and
Blackwell take at least. Where weights are read for few rows, multiplying so many costs no time."""


def tile_rows(rows_each: float, *, wide: bool, invariant: bool) -> int:
    """rows_each: choices an expert gets, if all get as many. wide: float32 is multiplied."""
    most = 16 if wide else 128
    if invariant:
        return min(INVARIANT_ROWS, most)
    return next((rows for rows in (16, 32, 64) if rows >= min(rows_each, most)), most)


@lru_cache(64)
def tile_shape(rows: int, *, gated: bool, scaled: bool, packed: bool, wide: bool) -> TileShape:
    """For tiles of so many rows. gated: two products at a time. scaled: weights are codes with
    scales, packed: two in a byte, of which a step is 128 whatever the tile. wide: as for
    `tile_rows`.

    So large that nothing is spilled on any architecture (docs/kernels-gpu.md has the table): codes
    take registers on their way to the tensor cores.
    """
    if wide:
        return TileShape(rows, 32, 128 if packed else 64, 4, 2, 2)
    if rows <= 32:
        return TileShape(rows, 64, 128 if scaled else 64, 4, 4, 2 if scaled else 3)
    warps, resident = (8, 1) if rows > 64 else (4, 2)
    outputs = 64 if gated else 128
    if scaled:
        return TileShape(rows, outputs // 2, 128 if packed else 64, warps, 3, resident)
    return TileShape(rows, outputs, 64, warps, 3, resident)
