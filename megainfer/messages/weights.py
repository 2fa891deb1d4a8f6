"""Where a version of the weights lies, for whoever loads it."""

import msgspec

from megainfer.models.quantization import QuantizationSpec
from megainfer.topology import FOLDERS_OWN, WeightVersion


class WeightFiles(msgspec.Struct, frozen=True):
    """files: paths of safetensors files that hold all of it; none: the model folder does.
    quantization: how these are quantised; of the folder, its config.json says it."""

    version: WeightVersion = FOLDERS_OWN
    files: tuple[str, ...] = ()
    quantization: QuantizationSpec | None = None


class GivingNode(msgspec.Struct, frozen=True):
    """An expert node that gives others experts. host, port: where."""

    node: int
    host: str
    port: int


OF_FOLDER = WeightFiles()
"""Those with which an instance starts."""
