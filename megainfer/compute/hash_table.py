"""The table of a router that looks experts up by token id."""

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.errors import CheckpointError
from megainfer.models.sources import FfnSources
from megainfer.models.spec import MoESpec


def load_hash_table(spec: MoESpec, sources: FfnSources, reader: WeightReader) -> Tensor | None:
    """int64 [V, K]; None where the router has none.

    Raises CheckpointError where it names an expert that there isn't.
    """
    pieces = sources.hash_table(spec)
    if not pieces:
        return None
    table = reader.read(pieces, torch.int64)
    lowest, highest = table.aminmax()
    if lowest < 0 or highest >= spec.router.num_experts:
        raise CheckpointError(
            f"tensor {pieces[0].name} names the experts {int(lowest)} to {int(highest)}, but there "
            f"are {spec.router.num_experts}, from 0 on"
        )
    return reader.device.upload(table)
