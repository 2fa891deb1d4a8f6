"""Two checkpoints of one shape with other weights."""

from pathlib import Path
from typing import Any, NamedTuple

from tests.support.checkpoints import write_checkpoint


class Models(NamedTuple):
    old: Path
    new: Path


def write_models(folder: Path, **shape: Any) -> Models:
    names = enumerate(Models._fields)
    return Models(
        *(write_checkpoint("olmoe", "mha", folder / n, seed=i, **shape) for i, n in names)
    )
