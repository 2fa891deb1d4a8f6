"""What fills payloads and adds replies up: kernels of the port's device, which ask no host."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.m2n.mailbox import Part


class Packed(NamedTuple):
    """A dispatch's payload: hidden [R, D], local ids int32 [R, K], weights float32 [R, K], and
    count int32 [1], how many of the R rows are no padding."""

    hidden: Tensor
    local_ids: Tensor
    weights: Tensor
    count: Tensor  # type: ignore[assignment]  # a tuple's count() is no use here


class Packing(Protocol):
    """Both calls give work to the current stream of `device` and return at once."""

    def pack(
        self, device: Device, hidden: Tensor, parts: Sequence[Part], into: Sequence[Packed]
    ) -> None:
        """Write each part's rows of `hidden` [T, D], its choices and its count into the payload of
        the same place, which may be another device's memory."""

    def add(
        self, device: Device, parts: Sequence[Part], replies: Sequence[Tensor], out: Tensor
    ) -> None:
        """Add the rows of replies [R, D] that count to those rows of `out` [T, D], part after part:
        the order in which sums are rounded. Replies hold anything behind the rows that count."""


class TorchPacking:
    """`Packing` in torch's kernels, a few for each part: for any device."""

    def pack(
        self, device: Device, hidden: Tensor, parts: Sequence[Part], into: Sequence[Packed]
    ) -> None:
        """See `Packing.pack`."""
        writes = [tensor for packed in into for tensor in packed]
        work = partial(_pack, hidden, parts, into)
        device.launch(work, [hidden, *_tensors(parts)], writes, name="pack")

    def add(
        self, device: Device, parts: Sequence[Part], replies: Sequence[Tensor], out: Tensor
    ) -> None:
        """See `Packing.add`."""
        work = partial(_add, parts, replies, out)
        device.launch(work, [*_tensors(parts), *replies, out], [out], name="add")


TORCH_PACKING = TorchPacking()


def _pack(hidden: Tensor, parts: Sequence[Part], into: Sequence[Packed]) -> None:
    for part, packed in zip(parts, into, strict=True):
        torch.index_select(hidden, 0, part.rows, out=packed.hidden)
        packed.local_ids.copy_(part.local_ids)
        packed.weights.copy_(part.weights)
        if part.count is None:
            packed.count.fill_(part.rows.numel())
        else:
            packed.count.copy_(part.count)


def _add(parts: Sequence[Part], replies: Sequence[Tensor], out: Tensor) -> None:
    for part, reply in zip(parts, replies, strict=True):
        if part.count is not None:
            places = torch.arange(len(reply), device=reply.device)
            reply = reply.masked_fill((places >= part.count)[:, None], 0.0)
        out.index_add_(0, part.rows, reply.to(out.dtype))


def _tensors(parts: Sequence[Part]) -> Iterable[Tensor]:
    return [tensor for part in parts for tensor in part if tensor is not None]
