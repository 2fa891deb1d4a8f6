"""Memory of a CUDA device that processes share: the driver's virtual memory management.

Physical memory has a handle, which travels as a file descriptor, and lives until the last handle
and the last mapping of any process are gone: a peer that was killed takes none away.
"""

import io
import os
from functools import partial
from typing import Any

from torch import Tensor

from megainfer.device import Device
from megainfer.errors import ConfigError, ProtocolError
from megainfer.m2n.geometry import PayloadRoom
from megainfer.m2n.ipc.cuda_driver import CudaDriver, DriverError
from megainfer.m2n.ipc.foreign_tensor import tensor_at
from megainfer.m2n.slotted.payloads import StridedPayloads

_NEEDED = {
    "CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED": "map memory by handles",
    "CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED": "share it by descriptors",
    "CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS": "store 64-bit words from a stream",
}


class CudaPayloads(StridedPayloads):
    """`payloads.SharedPayloads`. file: the handle of the memory."""

    def __init__(self, memory: Tensor, stride: int, file: io.FileIO) -> None:
        super().__init__(memory, stride)
        self._file = file

    def fileno(self) -> int:
        """See `SharedPayloads.fileno`."""
        return self._file.fileno()

    def withdraw(self) -> None:
        """See `SharedPayloads.withdraw`."""
        self._file.close()


class CudaMemory:
    """`payloads.DeviceMemory`. Raises ConfigError where the device lacks what this needs."""

    def __init__(self, device: Device, driver: CudaDriver) -> None:
        self.device = device
        self._driver = driver
        names = driver.names
        number = device.torch.index or 0
        self._cuda = driver.call("cuDeviceGet", number)
        for attribute, what in _NEEDED.items():
            code = getattr(names.CUdevice_attribute, attribute)
            if not driver.call("cuDeviceGetAttribute", code, self._cuda):
                raise ConfigError(
                    f"the road 'ipc' needs a GPU that can {what}, {device.name} cannot"
                )
        self.uuid: bytes = driver.call("cuDeviceGetUuid", self._cuda).bytes
        self._context = driver.call("cuDevicePrimaryCtxRetain", self._cuda)  # torch's own
        self._kind = names.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self._wanted = names.CUmemAllocationProp()
        self._wanted.type = names.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._wanted.requestedHandleTypes = self._kind
        self._access = names.CUmemAccessDesc()
        self._access.flags = names.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        for place in (self._wanted.location, self._access.location):
            place.type = names.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            place.id = number
        least = names.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self._unit: int = driver.call("cuMemGetAllocationGranularity", self._wanted, least)

    def allocate(self, room: PayloadRoom) -> CudaPayloads:
        """See `DeviceMemory.allocate`."""
        size = self._whole(room)
        try:
            handle = self._call("cuMemCreate", size, self._wanted, 0)
        except DriverError as error:
            raise ConfigError(
                f"M2N's {room.slots} slots take {size} bytes of {self.device.name}, which has no "
                f"room for them ({error.reason}); lower --max-num-batched-tokens or "
                "--micro-batches"
            ) from None
        try:
            descriptor = self._call("cuMemExportToShareableHandle", handle, self._kind, 0)
            os.set_inheritable(descriptor, False)
            file = io.FileIO(descriptor, "r+")
            return CudaPayloads(self._mapped(handle, size), room.stride, file)
        finally:
            self._call("cuMemRelease", handle)  # the mapping and the descriptor hold the memory

    def adopt(self, file: io.FileIO, room: PayloadRoom, owner: bytes) -> StridedPayloads:
        """See `DeviceMemory.adopt`."""
        try:
            handle = self._call("cuMemImportFromShareableHandle", file.fileno(), self._kind)
            try:
                return StridedPayloads(self._mapped(handle, self._whole(room)), room.stride)
            finally:
                self._call("cuMemRelease", handle)
        except DriverError as error:
            raise ProtocolError(
                f"the payloads on GPU {owner.hex()} cannot be reached from {self.device.name}, GPU "
                f"{self.uuid.hex()}: {error}"
            ) from None

    def _whole(self, room: PayloadRoom) -> int:
        """Bytes, in whole units of allocation."""
        return -(-room.bytes // self._unit) * self._unit

    def _mapped(self, handle: Any, size: int) -> Tensor:
        """The memory as this device sees it, until the last view of it is gone."""
        start = self._call("cuMemAddressReserve", size, 0, 0, 0)
        try:
            self._call("cuMemMap", start, size, 0, handle, 0)
            try:
                self._call("cuMemSetAccess", start, size, [self._access], 1)
            except DriverError:
                self._call("cuMemUnmap", start, size)
                raise
        except DriverError:
            self._call("cuMemAddressFree", start, size)
            raise
        return tensor_at(int(start), size, self.device.torch, partial(self._unmap, start, size))

    def _unmap(self, start: Any, size: int) -> None:
        self._call("cuCtxSynchronize")  # kernels may still be at it, whose views are gone by now
        self._call("cuMemUnmap", start, size)
        self._call("cuMemAddressFree", start, size)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Of any thread, on the device's context."""
        self._driver.call("cuCtxSetCurrent", self._context)
        return self._driver.call(name, *arguments)
