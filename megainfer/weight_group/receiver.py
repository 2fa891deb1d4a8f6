"""A process that takes broadcast weights: who waits in a collective call can't be told to stop.

    python -m megainfer.weight_group.receiver

Frames on both pipes are JSON: `Join` and then `BroadcastWeights` come in, each answered by `Said`.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from megainfer.checkpoint.files import DTYPES
from megainfer.checkpoint.shared import Kind, written_weights
from megainfer.errors import CheckpointError, MegaInferError
from megainfer.helper_frames import answer, die_with, frames, own_pipes
from megainfer.weight_group.joining import dtype_name, join_group
from megainfer.weight_group.wishes import BroadcastWeights, Join, Said

KNOWN = {dtype_name(dtype): dtype for dtype in DTYPES.values()}
FAILURES = (MegaInferError, RuntimeError, ValueError, OSError, MemoryError)
"""torch.distributed's own are RuntimeErrors and ValueErrors."""


def main() -> None:
    """Until the other side closes the pipe."""
    source, sink = own_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # those who can tell why end it
    asked = frames(source)
    wish = msgspec.json.decode(next(asked), type=Join)
    die_with(wish.parent)
    try:
        group = join_group(wish.group)
    except FAILURES as error:
        answer(msgspec.json.encode(Said(error=_told(error))), sink)
        return
    answer(msgspec.json.encode(Said()), sink)
    device = torch.device("cuda" if wish.group.backend == "nccl" else "cpu")
    held = ExitStack()  # of the latest weights
    for frame in asked:
        held.close()
        try:
            weights = msgspec.json.decode(frame, type=BroadcastWeights)
            said = Said(path=held.enter_context(_received(weights, group, device)))
        except FAILURES as error:
            said = Said(error=_told(error))
        answer(msgspec.json.encode(said), sink)


def _received(weights: BroadcastWeights, group: dist.ProcessGroup, device: torch.device) -> Any:
    """The memory that they are in. A tensor that can't be is known before any is waited for."""
    kinds = {each.name: Kind(_dtype(each.dtype), each.shape) for each in weights.tensors}
    return written_weights(kinds, _arriving(kinds, group, device))


def _arriving(
    kinds: dict[str, Kind], group: dist.ProcessGroup, device: torch.device
) -> Iterator[Tensor]:
    for kind in kinds.values():
        tensor = torch.empty(kind.shape, dtype=kind.dtype, device=device)
        dist.broadcast(tensor, 0, group)
        yield tensor


def _dtype(name: str) -> torch.dtype:
    dtype = KNOWN.get(name.removeprefix("torch."))
    if dtype is None:
        raise CheckpointError(f"{name!r:.40} is no dtype that weights come in")
    return dtype


def _told(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]


if __name__ == "__main__":
    main()
