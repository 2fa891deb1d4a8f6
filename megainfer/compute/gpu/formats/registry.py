"""Formats by the name that `--expert-dtype` has for them."""

import torch

from megainfer.compute.gpu.formats.e4m3 import BLOCK, e4m3
from megainfer.compute.gpu.formats.format import WeightFormat
from megainfer.compute.gpu.formats.int4 import int4
from megainfer.compute.gpu.formats.int8 import INT8
from megainfer.compute.gpu.formats.mxfp4 import MXFP4
from megainfer.compute.gpu.formats.plain import plain
from megainfer.errors import ConfigError

FORMATS = {
    known.name: known
    for known in (
        plain(torch.float32),
        plain(torch.bfloat16),
        INT8,
        MXFP4,
        int4("int4", 32),
        int4("int4_128", 128),
        e4m3("fp8", BLOCK, BLOCK),
        e4m3("fp8_channel", 1, 0),
    )
}


def format_of(name: str) -> WeightFormat:
    """Raises ConfigError for another name than those of FORMATS."""
    if name not in FORMATS:
        raise ConfigError(
            f"expert weights can't be {name!r} on a GPU; use one of {', '.join(FORMATS)}"
        )
    return FORMATS[name]
