"""The CUDA driver as a list of what it was asked, with handles that are files of this machine.

It has the calls of `cuda.bindings.driver` that M2N makes, with their arguments and results.
"""

import os
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

UNIT = 2**16
"""Bytes in which it gives memory."""


class Result(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_SUPPORTED = 801


def _location() -> SimpleNamespace:
    return SimpleNamespace(type=None, id=None)


class ScriptedDriver:
    """Memory behind addresses is the host's. fails: calls that give an error instead.

    calls: in order, the name and arguments of each. mapped, registered, handles: what is held.
    """

    CU_MEMHOSTREGISTER_PORTABLE = 1
    CU_MEMHOSTREGISTER_DEVICEMAP = 2
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED=102,
        CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED=103,
        CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS=122,
    )
    CUmemAllocationHandleType = SimpleNamespace(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR=1)
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0)
    CUstreamBatchMemOpType = SimpleNamespace(CU_STREAM_MEM_OP_WRITE_VALUE_64=5)
    CUstreamWriteValue_flags = SimpleNamespace(
        CU_STREAM_WRITE_VALUE_DEFAULT=SimpleNamespace(value=0)
    )
    CUdeviceptr = int

    def __init__(self, **fails: Result) -> None:
        self.fails = fails
        self.lacking: set[int] = set()  # attributes of the device
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.handles: dict[int, int] = {}  # handle -> bytes
        self.reserved: dict[int, Any] = {}  # address -> memory
        self.mapped: dict[int, int] = {}  # address -> bytes
        self.registered: set[int] = set()

    def CUmemAllocationProp(self) -> SimpleNamespace:
        return SimpleNamespace(type=None, requestedHandleTypes=None, location=_location())

    def CUmemAccessDesc(self) -> SimpleNamespace:
        return SimpleNamespace(location=_location(), flags=None)

    def CUstreamBatchMemOpParams(self) -> SimpleNamespace:
        return SimpleNamespace(operation=None, writeValue=SimpleNamespace())

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name in self.fails:
                return self.fails[name], None
            result = getattr(self, f"_{name}", lambda *_: ())(*arguments)
            return (Result.CUDA_SUCCESS, *(result if isinstance(result, tuple) else (result,)))

        return call

    def names(self) -> list[str]:
        """Of the calls, without those that only choose the context."""
        return [name for name, _ in self.calls if name != "cuCtxSetCurrent"]

    def _cuDeviceGet(self, number: int) -> int:
        return 70 + number

    def _cuDeviceGetAttribute(self, attribute: int, device: int) -> int:
        return int(attribute not in self.lacking)

    def _cuDeviceGetUuid(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(bytes=bytes([device]) * 16)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> str:
        return f"context of {device}"

    def _cuMemGetAllocationGranularity(self, wanted: Any, option: int) -> int:
        return UNIT

    def _cuMemCreate(self, size: int, wanted: Any, flags: int) -> int:
        assert size % UNIT == 0
        handle = os.memfd_create("device memory")
        os.ftruncate(handle, size)
        self.handles[handle] = size
        return handle

    def _cuMemExportToShareableHandle(self, handle: int, kind: int, flags: int) -> int:
        return os.dup(handle)

    def _cuMemImportFromShareableHandle(self, descriptor: int, kind: int) -> int:
        handle = os.dup(descriptor)
        self.handles[handle] = os.fstat(handle).st_size
        return handle

    def _cuMemRelease(self, handle: int) -> tuple[()]:
        del self.handles[handle]
        os.close(handle)
        return ()

    def _cuMemAddressReserve(self, size: int, alignment: int, address: int, flags: int) -> int:
        memory = np.zeros(size, dtype=np.uint8)
        start: int = memory.ctypes.data
        self.reserved[start] = memory
        return start

    def _cuMemMap(self, start: int, size: int, offset: int, handle: int, flags: int) -> tuple[()]:
        assert self.reserved[start].size >= size <= self.handles[handle]
        self.mapped[start] = size
        return ()

    def _cuMemUnmap(self, start: int, size: int) -> tuple[()]:
        assert self.mapped.pop(start) == size
        return ()

    def _cuMemAddressFree(self, start: int, size: int) -> tuple[()]:
        assert start not in self.mapped
        assert self.reserved.pop(start).size == size
        return ()

    def _cuMemHostRegister(self, address: int, size: int, flags: int) -> tuple[()]:
        self.registered.add(address)
        return ()

    def _cuMemHostGetDevicePointer(self, address: int, flags: int) -> int:
        return address + 2**40  # where the device has it

    def _cuMemHostUnregister(self, address: int) -> tuple[()]:
        self.registered.remove(address)
        return ()
