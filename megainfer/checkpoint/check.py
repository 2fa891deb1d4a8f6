"""Whether a folder holds all weights of a model, as its headers say. Pure: no torch."""

from collections.abc import Sequence
from pathlib import Path

from megainfer.checkpoint.encodings.choice import encoding_of
from megainfer.checkpoint.headers import INDEX, TensorHeaders, read_index
from megainfer.errors import CheckpointError
from megainfer.models.quantization import QuantizationSpec
from megainfer.models.sources import all_sources
from megainfer.models.spec import ModelSpec


def check_weights(
    place: Path | Sequence[Path], spec: ModelSpec, quantization: QuantizationSpec | None
) -> int:
    """Look up every tensor that any node will read, without reading any; the bytes of them all.

    place: a folder, or files.

    Raises CheckpointError naming the first file or tensor that is missing, damaged or misshapen.
    """
    headers = TensorHeaders(place)
    sizes = {}
    for source in all_sources(spec):
        encoding = encoding_of(headers, source, quantization)
        for stored in (encoding.codes, *encoding.sides):
            sizes[stored.path, stored.offset] = stored.size
    return sum(sizes.values())


def check_names(folder: Path, spec: ModelSpec, quantization: QuantizationSpec | None) -> None:
    """As `check_weights` where only the index is there: by the names of what isn't quantised.

    Raises CheckpointError.
    """
    names = read_index(folder / INDEX)
    for source in all_sources(spec):
        if source.name not in names and (quantization is None or len(source.entry_shape) != 2):
            raise CheckpointError(f"{folder / INDEX} names no tensor {source.name}")
