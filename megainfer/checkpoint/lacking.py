"""Files with weights that a model folder should have and hasn't."""

from pathlib import Path

from megainfer.checkpoint.headers import INDEX, read_index
from megainfer.checkpoint.pinned import weight_files


def lacking(folder: Path) -> set[str] | None:
    """Their names; None: all, by whatever names. Raises CheckpointError for an index that can't be
    read."""
    index = folder / INDEX
    if index.exists():
        files = set(read_index(index).values())  # few, of many tensors
        return {path.name for path in files if not path.exists()}
    return set() if weight_files(folder) else None
