"""Where the payloads of slots are: beside their headers, or in a device's memory that is shared.

Memory of a device travels between processes as memory of the host does, as a file descriptor.
"""

import io
from typing import Protocol

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.m2n.geometry import PayloadRoom


class Payloads(Protocol):
    """The payloads of all slots of a region."""

    def tensor(self, slot: int, offset: int, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        """A view of a slot's payload from `offset` bytes on."""


class SharedPayloads(Payloads, Protocol):
    """A node's own, which its peers get."""

    def fileno(self) -> int:
        """What a peer adopts them by."""

    def withdraw(self) -> None:
        """Nobody more can adopt them; whoever has them keeps them."""


class DeviceMemory(Protocol):
    """A device's memory as processes share it. Any thread may call it.

    uuid: 16 bytes that name the device, for whoever cannot reach it.
    """

    @property
    def device(self) -> Device: ...

    @property
    def uuid(self) -> bytes: ...

    def allocate(self, room: PayloadRoom) -> SharedPayloads:
        """New memory, for payloads of this node's slots. Raises ConfigError where it is full."""

    def adopt(self, file: io.FileIO, room: PayloadRoom, owner: bytes) -> Payloads:
        """Those that a peer has allocated, on the device of UUID `owner`; `file` is its caller's.

        Raises ProtocolError when it is none of that size, or the device cannot reach it.
        """


class StridedPayloads:
    """`Payloads` in one run of bytes. memory: uint8; a slot takes `stride` of them, of which the
    first `lead` are not payload."""

    def __init__(self, memory: Tensor, stride: int, lead: int = 0) -> None:
        self._memory, self._stride, self._lead = memory, stride, lead
        self._flat: dict[torch.dtype, Tensor] = {}  # all of the memory, for views of that dtype

    def tensor(self, slot: int, offset: int, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        """See `Payloads.tensor`."""
        rows, columns = shape
        if rows == 0:
            return self._memory.new_empty(shape, dtype=dtype)
        flat = self._flat.get(dtype)
        if flat is None:
            with torch.inference_mode(False):  # its views are written in any mode
                flat = self._flat[dtype] = self._memory.view(dtype)
        start = slot * self._stride + self._lead + offset
        # One call where a view of the right part and its shape would be three.
        return torch.as_strided(flat, shape, (columns, 1), start // dtype.itemsize)
