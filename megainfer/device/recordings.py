"""Work that a device has recorded, and what that takes of its memory."""

from collections.abc import Callable
from typing import TypeVar

from megainfer.device.device import Device, Replay

OnGraph = Callable[[int, int], None]
"""Hears (recorded, in all)."""
Result = TypeVar("Result")


class Recordings:
    """Those of one node, made one after the other.

    most_bytes: of the device's memory that they may take; once it is taken, there is no room for
    another. total: how many there would be. bytes: that it has grown by while they were made.
    """

    def __init__(self, device: Device, most_bytes: int, total: int, on_graph: OnGraph) -> None:
        self._device, self._most_bytes = device, most_bytes
        self._total, self._on_graph = total, on_graph
        self._before = self._held()
        self.count = self.bytes = 0

    def has_room(self) -> bool:
        return self._held() - self._before <= self._most_bytes

    def make(self, work: Callable[[], Result]) -> tuple[Result, Replay]:
        """Do it once as ever, so that kernels are compiled and libraries take their memory, then
        record it. What it gave the first time, and what gives it to the device again."""
        result = work()
        replay = self._device.capture(work)
        self.count += 1
        self.bytes = self._held() - self._before
        self._on_graph(self.count, self._total)
        return result, replay

    def counters(self, replays: int, eager: int) -> dict[str, int]:
        """What a node tells of them. replays: how often one was given to the device; eager: stages
        that were computed one kernel after the other in place of that."""
        return {
            "graphs": self.count,
            "graph_bytes": self.bytes,
            "graph_replays": replays,
            "eager_stages": eager,
        }

    def _held(self) -> int:
        memory = self._device.memory()
        return 0 if memory is None else memory.held
