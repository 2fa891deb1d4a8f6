"""Words of the host's memory that a CUDA stream stores: stream memory operations."""

from collections.abc import Sequence
from mmap import mmap
from typing import Any, NamedTuple

import torch

from megainfer.device import Device
from megainfer.m2n.ipc.cuda_driver import CudaDriver
from megainfer.m2n.slotted.native_end import address_of

MOST_AT_ONCE = 255
"""Operations of one `cuStreamBatchMemOp`."""


class CudaPlace(NamedTuple):
    """A prepared operation, since making one takes 20 us and changing its value 0.2."""

    operation: Any
    value: Any  # its part that holds `value64`


class CudaWords:
    """`publisher.HostWords`. A write is preceded by a fence for the whole system, so that whoever
    sees it, a host too, finds what the stream has done before it."""

    def __init__(self, device: Device, driver: CudaDriver) -> None:
        self._device = device.torch
        self._driver = driver

    def reach(self, region: mmap, offsets: Sequence[int]) -> list[CudaPlace]:
        """See `HostWords.reach`. Raises DriverError."""
        names, address = self._driver.names, address_of(region)
        flags = names.CU_MEMHOSTREGISTER_PORTABLE | names.CU_MEMHOSTREGISTER_DEVICEMAP
        self._driver.call("cuMemHostRegister", address, len(region), flags)
        start = int(self._driver.call("cuMemHostGetDevicePointer", address, 0))
        return [self._place(start + offset) for offset in offsets]

    def leave(self, region: mmap) -> None:
        """See `HostWords.leave`."""
        self._driver.call("cuCtxSynchronize")
        self._driver.call("cuMemHostUnregister", address_of(region))

    def store(self, words: Sequence[tuple[CudaPlace, int]]) -> None:
        """See `HostWords.store`: in the order given."""
        for place, word in words:
            place.value.value64 = word
        stream = torch.cuda.current_stream(self._device).cuda_stream
        for first in range(0, len(words), MOST_AT_ONCE):
            operations = [place.operation for place, _ in words[first : first + MOST_AT_ONCE]]
            self._driver.call("cuStreamBatchMemOp", stream, len(operations), operations, 0)

    def _place(self, address: int) -> CudaPlace:
        names = self._driver.names
        operation = names.CUstreamBatchMemOpParams()
        operation.operation = names.CUstreamBatchMemOpType.CU_STREAM_MEM_OP_WRITE_VALUE_64
        value = operation.writeValue
        value.operation = operation.operation
        value.address = names.CUdeviceptr(address)
        value.flags = names.CUstreamWriteValue_flags.CU_STREAM_WRITE_VALUE_DEFAULT.value
        return CudaPlace(operation, value)
