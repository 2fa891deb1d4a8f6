"""A device on which nothing goes up or comes back while it records."""

from collections.abc import Callable, Iterable

from torch import Tensor

from megainfer.device import HostDevice, MemoryUse, Replay
from megainfer.device.host import HostReadback


class RecordingDevice(HostDevice):
    """What was recorded is done again, to the letter, where it was replayed; told: what it was told
    of each replay, as (reads, writes)."""

    _records = False

    def __init__(self) -> None:
        super().__init__()
        self.told = list[tuple[list[Tensor], list[Tensor]]]()

    def capture(self, work: Callable[[], object]) -> Replay:
        self._records = True
        try:
            work()
        finally:
            self._records = False

        def replay(reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = ()) -> None:
            self.told.append(([*reads], [*writes]))
            work()

        return replay

    def upload(self, host: Tensor) -> Tensor:
        self._refuse(host)
        return super().upload(host)

    def fill(self, to: Tensor, host: Tensor) -> None:
        self._refuse(host)
        super().fill(to, host)

    def read_back(self, tensor: Tensor) -> HostReadback:
        assert not self._records, "what is recorded can't be asked for values"
        return super().read_back(tensor)

    def _refuse(self, host: Tensor) -> None:
        assert not self._records, f"{tuple(host.shape)} would go up once, when it is recorded"


class FullDevice(RecordingDevice):
    """Of whose memory every look finds a KiB more taken."""

    held = 0

    def memory(self) -> MemoryUse:  # type: ignore[override]
        self.held += 1024
        return MemoryUse(self.held, 0, 0)
