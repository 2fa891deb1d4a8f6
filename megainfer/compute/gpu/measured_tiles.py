"""Tiles of grouped products that were measured on a kind of GPU: they go before `tile_shape`'s.

A file `measured/NAME.json`, NAME being the GPU's own name, is the list `tiles` of the section
`tuning` of `benchmarks/gpu_suite.py`, which has measured them there. Where there is none, or
nothing about a product, nothing is missing.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from megainfer.compute.gpu.tile_shape import TileShape
from megainfer.errors import ConfigError
from megainfer.small_file import read_small_text

FOLDER = Path(__file__).parent / "measured"
_MOST_BYTES = 1 << 20


class Measured(NamedTuple):
    """What was multiplied: the weights' format, whether gate and up or down, its outputs and
    inputs, rows of a tile, and whether there were fewer tiles than keep the device busy."""

    format: str
    gated: bool
    outputs: int
    inputs: int
    rows: int
    scarce: bool


Tiles = Mapping[Measured, TileShape]


@lru_cache(8)
def measured_tiles(chip: str) -> Tiles:
    """Of the GPU of this name; none where nothing was measured.

    Raises ConfigError for a file that isn't such a list.
    """
    file = FOLDER / f"{chip.replace('/', ' ')}.json"
    if not chip or not file.exists():
        return {}
    try:
        found = json.loads(read_small_text(file, _MOST_BYTES))
        return dict(map(_entry, found))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} isn't a list of measured tiles ({error}): write it anew by "
            "`benchmarks/gpu_suite.py --only tuning`, or take it away"
        ) from error


def as_entry(product: Measured, tile: TileShape) -> dict[str, object]:
    """As files have it."""
    named = {name: getattr(tile, name) for name in TileShape.__slots__ if name != "rows"}
    return {**product._asdict(), "tile": named}


def _entry(entry: dict[str, object]) -> tuple[Measured, TileShape]:
    told = dict(entry)
    tile = told.pop("tile")
    if not isinstance(tile, dict) or not all(_is_size(size) for size in tile.values()):
        raise ValueError(f"a tile is {tile}")
    product = Measured(**told)  # type: ignore[arg-type]  # looked at below
    if not all(_is_size(size) for size in product[2:5]):
        raise ValueError(f"a product is {product}")
    return product, TileShape(rows=product.rows, **tile)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31
