"""Who used which memory last, and what is known to come before: races between streams."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

HOST = -1
"""The host's index among the streams."""

Clock = dict[int, int]
"""Of each stream, how many of its first works are known to come before."""


class Race(AssertionError):
    """Something reads or writes memory, and nothing puts it after what used that before."""


class Stamp(NamedTuple):
    """The `number`-th work of a stream."""

    stream: int
    number: int
    name: str = ""

    def is_before(self, clock: Clock) -> bool:
        return clock.get(self.stream, 0) >= self.number

    def __str__(self) -> str:
        where = "the host" if self.stream == HOST else f"stream {self.stream}"
        return f"{self.name or 'work'} on {where}"


@dataclass
class Use:
    """Of one storage since it was last written."""

    storage: StorageWeakRef  # while it is held, no other storage has this one's key
    written: Stamp | None = None
    read: list[Stamp] = field(default_factory=list)


class Uses:
    """Of all memory that a device's work has used."""

    def __init__(self) -> None:
        self._uses = dict[int, Use]()
        self._prune_at = 1000

    def knows(self, tensor: Tensor) -> bool:
        """Whether it lies in the device's memory."""
        return tensor.untyped_storage()._cdata in self._uses

    def of(self, tensor: Tensor) -> Use:
        """From here on it lies there."""
        if len(self._uses) > self._prune_at:
            self._uses = {k: use for k, use in self._uses.items() if not use.storage.expired()}
            self._prune_at = 2 * len(self._uses) + 1000
        storage = tensor.untyped_storage()
        return self._uses.setdefault(storage._cdata, Use(StorageWeakRef(storage)))

    def read(self, tensors: Iterable[Tensor], stamp: Stamp, clock: Clock) -> None:
        """clock: what comes before the reader. Raises Race."""
        for use in map(self.of, tensors):
            _check(stamp, "reads", use.written, "wrote", clock)
            use.read.append(stamp)

    def write(self, tensors: Iterable[Tensor], stamp: Stamp, clock: Clock) -> None:
        """clock: what comes before the writer. Raises Race."""
        for use in map(self.of, tensors):
            _check(stamp, "writes", use.written, "wrote", clock)
            for reader in use.read:
                _check(stamp, "writes", reader, "reads", clock)
            use.written, use.read = stamp, []


def merge(into: Clock, other: Clock) -> None:
    for stream, number in other.items():
        into[stream] = max(into.get(stream, 0), number)


def _check(now: Stamp, does: str, before: Stamp | None, did: str, clock: Clock) -> None:
    if before is not None and not before.is_before(clock):
        raise Race(f"{now} {does} what {before} {did}, and nothing puts it after that")
