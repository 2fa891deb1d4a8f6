"""What travels of rows: whole buckets of them, as on M2N, so that there are few sizes.

Then the end that receives can be ready for a payload before it is announced, and gloo sends it at
once. What lies behind the rows is whatever was there of earlier ones.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megainfer.m2n.dist.buffers import bucket_of, tag_of
from megainfer.ranks.layout import Field
from megainfer.ranks.shared import Shared


class Payload(NamedTuple):
    """bytes: uint8, where they are sent from or received. tag: by which both ends know its size."""

    bytes: Tensor
    tag: int


class Payloads:
    """Of a memory."""

    def __init__(self, shared: Shared[Any]) -> None:
        self._shared = shared
        self._known: dict[
            tuple[int, int], Payload
        ] = {}  # by offset, which fields may share, and tag

    def of(self, field: Field, rows: int) -> Payload:
        """Of so many rows, at least one."""
        tag = tag_of(field.number, rows)
        known = self._known.get((field.offset, tag))
        if known is None:
            with torch.inference_mode(False):  # it is written in any mode
                cut = self._shared.field(field)[: bucket_of(rows, field.rows)]
                known = Payload(cut.flatten().view(torch.uint8), tag)
            self._known[field.offset, tag] = known
        return known
