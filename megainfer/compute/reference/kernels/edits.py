"""Changing logits as requests wish, in torch; see `compute.edits`."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from megainfer.compute.bitmask import Bitmask, words_for
from megainfer.compute.edits import RowEdits
from megainfer.device import HOST, Device


def edit(logits: Tensor, edits: Sequence[RowEdits], device: Device = HOST) -> None:
    """In place: logits, float32 [S, V] and contiguous; device: where they are."""
    for each in edits:
        if each.allowed is not None:
            _forbid(logits[each.row], each.allowed, device)
    _add(logits, edits, device)
    _penalise(logits, [each for each in edits if each.held], device)


def _forbid(logits: Tensor, mask: Bitmask, device: Device) -> None:
    """In place: of one row, float32 [V], what its mask doesn't allow becomes -inf."""
    size = logits.shape[-1]
    assert mask.shape == (words_for(size),), f"a mask of {tuple(mask.shape)} for {size} tokens"
    bits = np.unpackbits(mask.view(np.uint8), count=size, bitorder="little")
    logits.masked_fill_(device.upload(torch.from_numpy(bits == 0)), -torch.inf)


def _add(logits: Tensor, edits: Sequence[RowEdits], device: Device) -> None:
    size = logits.shape[-1]
    places, values = array("q"), array("f")
    for each in edits:
        places.extend(each.row * size + token for token in each.added)
        values.extend(each.added.values())
    if places:
        logits.view(-1)[device.upload(_int64(places))] += device.upload(_float32(values))


def _penalise(logits: Tensor, edits: Sequence[RowEdits], device: Device) -> None:
    if not edits:
        return
    # Copies, since histories grow while a device may still have to read what it was given.
    places = torch.cat([_int64(e.held) + e.row * logits.shape[-1] for e in edits])
    counts = device.upload(torch.cat([_float32(e.generated) for e in edits]))
    lengths = torch.tensor([len(e.held) for e in edits])

    def spread(penalties: Iterable[float]) -> Tensor:
        """One number a row, repeated for each of its tokens."""
        return device.upload(_float32(array("f", penalties)).repeat_interleave(lengths))

    places = device.upload(places)
    values = logits.view(-1)[places]
    repetition = spread(e.repetition for e in edits)
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= spread(e.frequency for e in edits) * counts
    values -= spread(e.presence for e in edits) * (counts > 0)
    logits.view(-1)[places] = values


def _int64(numbers: "array[int]") -> Tensor:
    return torch.frombuffer(numbers, dtype=torch.int64)


def _float32(numbers: "array[float]") -> Tensor:
    return torch.frombuffer(numbers, dtype=torch.float32)
