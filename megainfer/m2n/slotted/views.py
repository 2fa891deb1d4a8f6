"""Views of payloads in a device's memory, kept: steps repeat their row counts, and making a view
takes longer than finding it."""

from functools import lru_cache, partial

import torch
from torch import Tensor

from megainfer.m2n.geometry import Geometry
from megainfer.m2n.packing import Packed
from megainfer.m2n.slotted.payloads import Payloads
from megainfer.m2n.slotted.slots import torch_dtype

_KEPT = 256


class PayloadViews:
    """Of the slots of one region. Each call takes a slot's number in it.

    packed: (slot, R) to a dispatch's payload. reply: (slot, R) to a reply's sums [R, D]. whole:
    slot to what stands for all of its memory.
    """

    def __init__(self, payloads: Payloads, geometry: Geometry) -> None:
        self.payloads = payloads
        self.packed = lru_cache(_KEPT)(partial(_packed, payloads, geometry))
        self.reply = lru_cache(_KEPT)(partial(_reply, payloads, geometry))
        self.whole = lru_cache(_KEPT)(partial(_whole, payloads))


def _packed(payloads: Payloads, geometry: Geometry, slot: int, rows: int) -> Packed:
    choices = (rows, geometry.top_k)
    hidden = (rows, geometry.hidden_size)
    return Packed(
        payloads.tensor(slot, 0, torch_dtype(geometry), hidden),
        payloads.tensor(slot, geometry.ids_offset(rows), torch.int32, choices),
        payloads.tensor(slot, geometry.weights_offset(rows), torch.float32, choices),
        payloads.tensor(slot, geometry.count_offset(rows), torch.int32, (1, 1))[0],
    )


def _reply(payloads: Payloads, geometry: Geometry, slot: int, rows: int) -> Tensor:
    return payloads.tensor(slot, 0, torch_dtype(geometry), (rows, geometry.hidden_size))


def _whole(payloads: Payloads, slot: int) -> Tensor:
    return payloads.tensor(slot, 0, torch.uint8, (1, 1))
