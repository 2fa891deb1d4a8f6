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
_PLAIN, _CHUNK = ("bfloat16", "float32"), 128


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
    except (OSError, ValueError, TypeError, KeyError) as error:
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
    if not isinstance(tile, dict):
        raise ValueError(f"a tile is {tile}")
    product = Measured(**told)  # type: ignore[arg-type]  # looked at below
    if not all(type(size) is int and size > 0 for size in (product.outputs, product.inputs)):
        raise ValueError(f"sizes of {product}")
    shape = TileShape(rows=product.rows, **tile)
    sizes = (shape.rows, shape.outputs, shape.step, shape.warps)
    counts = (shape.stages, shape.resident)
    if not all(map(_is_power, sizes)) or not all(n in range(1, 17) for n in counts):
        raise ValueError(f"numbers of {shape}")
    # Codes lie in chunks of 128, and behind a row of numbers is the next one, or anything.
    if product.inputs % shape.step if product.format in _PLAIN else shape.step != _CHUNK:
        raise ValueError(f"steps of {shape} through {product.inputs} inputs")
    return product, shape


def _is_power(value: object) -> bool:
    return type(value) is int and value in range(1, 1025) and value.bit_count() == 1
