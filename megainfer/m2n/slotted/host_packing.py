"""Payloads of host memory that are in no slot, filled and added up; in C++ by one call for all."""

import ctypes
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Part
from megainfer.m2n.packing import TORCH_PACKING, Packed, Packing
from megainfer.m2n.slotted import native_library as library
from megainfer.m2n.slotted.native_parts import SUMS, Parts
from megainfer.m2n.slotted.plain_mail import check_rows, no_such_row
from megainfer.m2n.slotted.slots import torch_dtype


class NativePacking:
    """`Packing` of a node on the host. Raises ProtocolError, before anything is written, where a
    part names a row that isn't there."""

    def __init__(self, geometry: Geometry) -> None:
        self._native = library.load()
        self._layout = ctypes.pointer(library.layout_of(geometry))
        self._dtype = torch_dtype(geometry)
        self._parts = Parts(geometry.num_expert)
        self._payloads = bytearray(geometry.num_expert * struct.calcsize("Q"))
        self._payloads_at = torch.frombuffer(self._payloads, dtype=torch.uint8).data_ptr()

    def pack(
        self, device: Device, hidden: Tensor, parts: Sequence[Part], into: Sequence[Packed]
    ) -> None:
        """See `Packing.pack`."""
        hidden = hidden.contiguous()
        self._fill(parts, [packed.hidden for packed in into])
        count, tokens = len(parts), len(hidden)
        if not self._native.megainfer_m2n_pack(
            self._layout,
            self._parts.address,
            self._payloads_at,
            count,
            hidden.data_ptr(),
            tokens,
        ):
            raise no_such_row(tokens)

    def add(
        self, device: Device, parts: Sequence[Part], replies: Sequence[Tensor], out: Tensor
    ) -> None:
        """See `Packing.add`."""
        kind = SUMS.get((self._dtype, out.dtype))
        if kind is None or out.stride(1) != 1:
            CHECKED_PACKING.add(device, parts, replies, out)
            return
        self._fill(parts, replies)
        count, tokens = len(parts), len(out)
        if not self._native.megainfer_m2n_add(
            self._layout,
            self._parts.address,
            self._payloads_at,
            count,
            kind,
            out.data_ptr(),
            tokens,
            out.stride(0),
        ):
            raise no_such_row(tokens)

    def _fill(self, parts: Sequence[Part], payloads: Sequence[Tensor]) -> None:
        """payloads: each with what it begins with."""
        self._parts.fill(parts)
        addresses = [payload.data_ptr() for payload in payloads]
        struct.pack_into(f"{len(addresses)}Q", self._payloads, 0, *addresses)


class CheckedPacking:
    """`Packing` by torch, of a node on the host, where C++ was not built or knows no such sum.
    Raises as `NativePacking`."""

    def pack(
        self, device: Device, hidden: Tensor, parts: Sequence[Part], into: Sequence[Packed]
    ) -> None:
        """See `Packing.pack`."""
        for part in parts:
            check_rows(part.rows, len(hidden))
        TORCH_PACKING.pack(device, hidden, parts, into)

    def add(
        self, device: Device, parts: Sequence[Part], replies: Sequence[Tensor], out: Tensor
    ) -> None:
        """See `Packing.add`."""
        for part in parts:
            check_rows(part.rows, len(out))
        TORCH_PACKING.add(device, parts, replies, out)


CHECKED_PACKING = CheckedPacking()


def packing_of_host(geometry: Geometry) -> Packing:
    """The fastest that was built."""
    return NativePacking(geometry) if library.is_built() else CHECKED_PACKING
