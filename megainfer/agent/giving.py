"""Giving the weights of a model that this host has to another one, which lacks some."""

import os
from collections.abc import Sequence
from pathlib import Path

from megainfer.checkpoint.headers import INDEX
from megainfer.checkpoint.pinned import weight_files
from megainfer.errors import CheckpointError, NodeDied, ProtocolError
from megainfer.hosts.wire import Wire, await_messages
from megainfer.messages.hosts import (
    ListWeights,
    ReadWeights,
    ToAttendant,
    WeightsListed,
    WeightsRead,
)

PATIENCE_SECONDS = 15.0
"""Of silence."""
MOST_BYTES = 8 << 20
"""Read at once; who asks knows no more of it than that."""


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes of the files with weights of a model folder, and of the index that names them."""
    index = folder / INDEX
    found = [*weight_files(folder), *([index] if index.is_file() else [])]
    return {path.name: path.stat().st_size for path in found if path.is_file()}


def serve_weights(wire: Wire[ToAttendant], said: Sequence[ToAttendant], folder: Path) -> None:
    """Answer until the other goes. said: what it has asked by now. Raises ProtocolError for another
    question, CheckpointError where a file can't be read."""
    wire.keep(PATIENCE_SECONDS)
    sizes = sizes_of(folder)
    while True:
        for message in said:
            match message:
                case ListWeights():
                    wire.send(WeightsListed(sizes))
                case ReadWeights(name=name, offset=offset, size=size) if name in sizes:
                    wire.send(WeightsRead(_read(folder / name, offset, min(size, MOST_BYTES))))
                case _:
                    raise ProtocolError(f"{wire.name} said {message!r:.80}")
        try:
            said = await_messages(wire, PATIENCE_SECONDS)
        except NodeDied:
            return


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)
    except (OSError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
