"""A dispatch's parts as the compiled part of M2N takes them."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.errors import ProtocolError
from megainfer.m2n.mailbox import Part

_PART = struct.Struct("<QQQq")  # `Part` of outbox.h
SUMS = {  # `Sum` of rows.h: (dtype of replies, dtype of what they are added to)
    (torch.float32, torch.float32): 0,
    (torch.bfloat16, torch.float32): 1,
    (torch.bfloat16, torch.bfloat16): 2,
}


class Parts:
    """Where the tensors of a dispatch's parts are, as the library wants it. most: parts that there
    may be."""

    def __init__(self, most: int) -> None:
        self._table = bytearray(most * _PART.size)
        self._filled = 0
        self.address = torch.frombuffer(self._table, dtype=torch.uint8).data_ptr()

    def fill(self, parts: Sequence[Part]) -> None:
        for node, part in enumerate(parts):
            rows, ids, weights = part.rows, part.local_ids, part.weights
            _PART.pack_into(
                self._table,
                node * _PART.size,
                _address(rows, torch.int64),
                _address(ids, torch.int32),
                _address(weights, torch.float32),
                rows.numel(),
            )
        if len(parts) < self._filled:  # nodes that are no more have no rows
            first, last = len(parts) * _PART.size, self._filled * _PART.size
            self._table[first:last] = bytes(last - first)
        self._filled = len(parts)


def _address(tensor: Tensor, dtype: torch.dtype) -> int:
    if tensor.dtype is not dtype or not tensor.is_contiguous():
        raise ProtocolError(f"a part's tensor is {tensor.dtype} or scattered, not plain {dtype}")
    address: int = tensor.data_ptr()
    return address
