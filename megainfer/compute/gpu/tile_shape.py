"""Which tiles a grouped product is cut into."""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import NamedTuple


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


class Product(NamedTuple):
    """What is multiplied. gated: two products at a time. scaled: weights are codes with scales,
    packed: two in a byte. wide: as for `tile_rows`. simple: there are neither biases nor weights of
    what is multiplied. inputs: as weights have them in memory, filled up. architecture: of the
    device, see `Chip`."""

    gated: bool
    scaled: bool
    packed: bool
    wide: bool
    simple: bool
    inputs: int
    architecture: int


INVARIANT_ROWS = 64
"""Of tiles where bits must not depend on what else is computed: what the tensor cores of Hopper and
Blackwell take at least. Where weights are read for few rows, multiplying so many costs no time."""

_HOPPER = 90
_LARGE = frozenset({_HOPPER, 100, 103})


def is_large(architecture: int) -> bool:
    """Whether a multiprocessor has 228 KiB of shared memory, and products that take tiles from
    there, so that registers are left for large sums; others have 164 KiB or less."""
    return architecture in _LARGE


def tile_rows(rows_each: float, *, wide: bool, invariant: bool) -> int:
    """rows_each: choices an expert gets, if all get as many. wide: float32 is multiplied.

    If choices fall by chance, an expert's number deviates by the root of the mean (Poisson): with
    two of those to spare nearly every expert's fit into one tile, and its weights are read once.
    """
    most = 16 if wide else 128
    if invariant:
        return min(INVARIANT_ROWS, most)
    likely = min(rows_each + 2 * sqrt(rows_each), most)
    return next((rows for rows in (16, 32, 64) if rows >= likely), most)


@lru_cache(64)
def tile_shape(product: Product, rows: int, scarce: bool) -> TileShape:
    """For tiles of so many rows. scarce: there may be fewer tiles than keep the device busy.

    So large that nothing is spilled on any architecture (docs/kernels-gpu.md has the table, and
    what the numbers follow from): codes take registers on their way to the tensor cores.
    """
    large = is_large(product.architecture)
    if product.wide:
        return TileShape(rows, 32, 128 if product.packed else 64, 4, 2, 2)
    if rows <= 32:
        return _of_few_rows(product, rows, scarce, large)
    outputs, resident = 64 if product.gated else 128, 1 if rows > 64 else 2
    warps = 8 if rows > 64 or not (product.gated or product.scaled) else 4
    if product.scaled:
        return TileShape(rows, outputs // 2, 128 if product.packed else 64, warps, 3, resident)
    if rows > 64 and product.simple and product.architecture == _HOPPER:
        return TileShape(rows, 2 * outputs, 64, warps, 4, resident)
    return TileShape(rows, outputs, 64, warps, 3, resident)


def _of_few_rows(product: Product, rows: int, scarce: bool, large: bool) -> TileShape:
    """All is reading weights: 256 bytes of a row at a time."""
    if product.scaled:
        # With biases behind packed codes a compiler spills at four stages, and not at five.
        biased = product.packed and not (product.gated or product.simple)
        return TileShape(rows, 64, 128, 4, 5 if biased else 4, 2)
    if product.inputs % 128:  # behind a row's end is the next one, or anything
        return TileShape(rows, 64, 64, 4, 4, 3 if large else 2)
    outputs = (64 if product.gated else 128) // (2 if scarce else 1)
    return TileShape(rows, outputs, 128, 4, 3, 3 if large and rows <= 16 else 2)
