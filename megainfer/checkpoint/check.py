"""Whether a folder holds all weights of a model, as its headers say. Pure: no torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megainfer.checkpoint.encodings.choice import encoding_of
from megainfer.checkpoint.headers import INDEX, TensorHeaders, read_index
from megainfer.errors import CheckpointError
from megainfer.models.quantization import QuantizationSpec
from megainfer.models.sources import attention_sources, expert_sources
from megainfer.models.spec import ModelSpec
from megainfer.models.stored import Source


def check_weights(
    place: Path | Sequence[Path], spec: ModelSpec, quantization: QuantizationSpec | None
) -> int:
    """Look up every tensor that any node will read, without reading any; the bytes of them all.

    place: a folder, or files.

    Raises CheckpointError naming the first file or tensor that is missing, damaged or misshapen.
    """
    headers = TensorHeaders(place)
    sizes = {}
    for source in _sources(spec):
        encoding = encoding_of(headers, source, quantization)
        for stored in (encoding.codes, *encoding.sides):
            sizes[stored.path, stored.offset] = stored.size
    return sum(sizes.values())


def check_names(folder: Path, spec: ModelSpec, quantization: QuantizationSpec | None) -> None:
    """As `check_weights` where only the index is there: by the names of what isn't quantised.

    Raises CheckpointError.
    """
    names = read_index(folder / INDEX)
    for source in _sources(spec):
        if source.name not in names and (quantization is None or len(source.entry_shape) != 2):
            raise CheckpointError(f"{folder / INDEX} names no tensor {source.name}")


def _sources(spec: ModelSpec) -> Iterator[Source]:
    yield from attention_sources(spec)
    yield from expert_sources(spec, dict.fromkeys(spec.moe_layers, range(spec.num_experts)))
