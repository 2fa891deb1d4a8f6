"""The road `ipc` without a GPU: a second memfd is the device's memory, the host its device.

What a stream would store is stored at once; all else is the road's own.
"""

import io
from collections.abc import Sequence
from mmap import mmap

import numpy as np
import torch

from megainfer.device import HOST, Device
from megainfer.m2n.geometry import PayloadRoom
from megainfer.m2n.host.ports import (
    HostAttentionPort,
    HostExpertPort,
    accept_at_its_place,
    addresses_of,
    listen_at_its_place,
)
from megainfer.m2n.host.region import create_region, map_region
from megainfer.m2n.ipc.equipment import Equipment
from megainfer.m2n.ipc.ports import attention_port, expert_port
from megainfer.m2n.roads import Road, Seat
from megainfer.m2n.slotted.payloads import StridedPayloads

TWIN = "twin"
"""What tests call it in `roads.ROADS`."""
UUID = bytes(range(16))


class TwinPayloads(StridedPayloads):
    """`payloads.SharedPayloads`."""

    def __init__(self, file: io.FileIO, room: PayloadRoom) -> None:
        super().__init__(mapped(file, room), room.stride)
        self._file = file

    def fileno(self) -> int:
        return self._file.fileno()

    def withdraw(self) -> None:
        self._file.close()


class TwinMemory:
    """`payloads.DeviceMemory`."""

    device: Device = HOST
    uuid = UUID

    def allocate(self, room: PayloadRoom) -> TwinPayloads:
        return TwinPayloads(create_region(room.bytes), room)

    def adopt(self, file: io.FileIO, room: PayloadRoom, owner: bytes) -> StridedPayloads:
        assert owner == UUID
        return StridedPayloads(mapped(file, room), room.stride)


def mapped(file: io.FileIO, room: PayloadRoom) -> torch.Tensor:
    return torch.frombuffer(map_region(file, room.bytes), dtype=torch.uint8)


class TwinWords:
    """`publisher.HostWords`."""

    def reach(
        self, region: mmap, offsets: Sequence[int]
    ) -> "list[np.ndarray[tuple[int], np.dtype[np.uint64]]]":
        return [np.ndarray((1,), np.uint64, region, offset) for offset in offsets]

    def leave(self, region: mmap) -> None:
        """Nothing is on its way."""

    def store(
        self, words: "Sequence[tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], int]]"
    ) -> None:
        for place, word in words:
            place[0] = word


def twin() -> Equipment:
    return Equipment(TwinMemory(), TwinWords())


def join_attention(road: Road, seat: Seat, *_: object) -> HostAttentionPort:
    return attention_port(road.token, seat, road.options, twin())


def join_expert(road: Road, seat: Seat, *_: object) -> HostExpertPort:
    port = expert_port(seat, road.options, twin())
    listen_at_its_place(port, road, seat)
    return port


def open_attention_port(road: Road, seat: Seat, timeout: float, *_: object) -> HostAttentionPort:
    port = attention_port(road.token, seat, road.options, twin())
    port.connect(addresses_of(road, seat), timeout)
    return port


def open_expert_port(road: Road, seat: Seat, timeout: float, *_: object) -> HostExpertPort:
    port = expert_port(seat, road.options, twin())
    accept_at_its_place(port, road, seat, timeout)
    return port
