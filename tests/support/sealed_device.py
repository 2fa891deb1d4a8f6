"""A device whose memory is an arena: once it is sealed, more of it is refused."""

from collections.abc import Sequence

import torch
from torch import Tensor, dtype
from torch.multiprocessing.reductions import StorageWeakRef

from megainfer.device import HostDevice, MemoryUse


class SealedDevice(HostDevice):
    """The host, asked as a GPU is. Counted is what code of ours asks it for, as far as it is still
    held; what was held at once before it was sealed is what there is from then on."""

    name = "sealed"
    is_host = False

    def __init__(self) -> None:
        super().__init__()
        self._held = list[tuple[StorageWeakRef, int]]()
        self._most: int | None = None
        self.peak = 0

    def empty(self, shape: Sequence[int], dtype: dtype) -> Tensor:
        tensor = super().empty(shape, dtype)
        self._held = [(storage, size) for storage, size in self._held if not storage.expired()]
        used = self.used + tensor.nbytes
        if self._most is not None and used > self._most:
            raise torch.OutOfMemoryError(
                f"{tuple(shape)} of {dtype} would make it {used} bytes; sealed with {self._most}"
            )
        self._held.append((StorageWeakRef(tensor.untyped_storage()), tensor.nbytes))
        self.peak = max(self.peak, used)
        return tensor

    @property
    def used(self) -> int:
        return sum(size for storage, size in self._held if not storage.expired())

    def seal(self) -> None:
        self._most = self.peak

    def memory(self) -> MemoryUse:  # type: ignore[override]
        return MemoryUse(self.peak, self.used, 0)
