"""Other weights come to a node while it serves: read by a thread of their own, a little at a time.

Nothing waits for it. What was read is aside until a membership with these weights is entered; then
the node computes with it, and the old weights are gone.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread, get_native_id
from time import monotonic

from megainfer.checkpoint.reader import LooseFiles, WeightReader
from megainfer.checkpoint.switch import Switch
from megainfer.device import HOST, Device
from megainfer.errors import ConfigError, MegaInferError
from megainfer.launch.plan import Plan
from megainfer.messages.from_child import Prepared
from megainfer.messages.to_child import Prepare
from megainfer.messages.weights import WeightFiles
from megainfer.topology import Placement, WeightVersion

LOOK_SECONDS = 0.02
"""How often a node that has nothing to do looks whether all is read."""
WORK_SECONDS = 0.005
"""How long the thread works before it rests."""
REST = 1.0
"""How long it rests, in times of what it worked, where the node is busy: memory bandwidth is what
steps are computed with."""
LEAST_PRIORITY = 19

Load = Callable[[WeightReader, Placement], Switch]
"""Reads a node's own tensors, in any thread."""


def reader_of(
    plan: Plan, weights: WeightFiles, threads: int = 1, device: Device = HOST
) -> WeightReader:
    """Of these weights. Raises CheckpointError."""
    if not weights.files:
        return WeightReader(plan.folder, threads=threads, device=device)
    loose = LooseFiles(tuple(map(Path, weights.files)), weights.quantization)
    return WeightReader(loose, threads=threads, device=device)


class Renewer:
    """Brings one version in at a time; a newer wish takes the place of an older one.

    weights: with which the node computes. open_reader: of any weights. is_busy: whether the node
    has steps to compute just now.
    """

    def __init__(
        self,
        weights: WeightFiles,
        open_reader: Callable[[WeightFiles], WeightReader],
        load: Load,
        is_busy: Callable[[], bool],
    ) -> None:
        self.weights = weights
        self._open_reader = open_reader
        self._load = load
        self._is_busy = is_busy
        self._reading: _Reading | None = None

    def prepare(self, wish: Prepare) -> None:
        """Read these weights; `news` says when that is done. Where the node has them, nothing is
        read, and what was read of others is forgotten."""
        self.drop()
        if wish.weights.version != self.weights.version:
            self._reading = _Reading(wish, self._open_reader, self._load, self._is_busy)
            self._reading.start()

    def news(self) -> list[Prepared]:
        """What there is to say of what was read, once."""
        reading = self._reading
        if reading is None or reading.is_alive() or reading.told:
            return []
        reading.told = True
        return [Prepared(reading.wish.ticket, reading.error)]

    def take(self, version: WeightVersion) -> Switch | None:
        """What has the node compute with this version; None where it does so already.

        Raises ConfigError where it wasn't read.
        """
        if version == self.weights.version:
            return None
        reading = self._reading
        if reading is None or reading.switch is None or reading.wish.weights.version != version:
            raise ConfigError(
                f"weights {version.name!r} (number {version.number}) are to be computed with, but "
                f"were not loaded here; there are {self.weights.version.name!r}"
            )
        self.weights, self._reading = reading.wish.weights, None
        return reading.switch

    def sleep_bound(self, timeout: float) -> float:
        """Seconds after which there may be something, at most `timeout`."""
        waits = self._reading is not None and not self._reading.told
        return min(timeout, LOOK_SECONDS) if waits else timeout

    def drop(self) -> None:
        """Forget what was read; a thread that still reads ends by itself."""
        if self._reading is not None:
            self._reading.ended.set()
            self._reading = None


class _Superseded(Exception):
    """What is being read isn't wanted any more."""


class _Reading(Thread):
    """switch: what came of it, None before its end and where it failed. error: why it failed."""

    def __init__(
        self,
        wish: Prepare,
        open_reader: Callable[[WeightFiles], WeightReader],
        load: Load,
        is_busy: Callable[[], bool],
    ) -> None:
        super().__init__(name="new weights", daemon=True)
        self.wish = wish
        self.ended = Event()
        self.told = False
        self.switch: Switch | None = None
        self.error: str | None = "the thread that reads weights has died"
        self._open_reader = open_reader
        self._load = load
        self._is_busy = is_busy
        self._since = monotonic()  # when it last began to work

    def run(self) -> None:
        if sys.platform == "linux":  # where a priority is a thread's
            os.setpriority(os.PRIO_PROCESS, get_native_id(), LEAST_PRIORITY)
        try:
            with self._open_reader(self.wish.weights) as reader:
                reader.on_bytes = self._rest
                self.switch = self._load(reader, self.wish.placement)
        except _Superseded:
            self.error = "other weights were asked for"
        except (MegaInferError, OSError, MemoryError, RuntimeError) as error:  # torch's own, too
            self.error = f"can't load them: {error}"
        else:
            self.error = None

    def _rest(self, done: int) -> None:
        """Called after each piece that was read. Raises _Superseded."""
        worked = monotonic() - self._since
        if worked >= WORK_SECONDS:
            self.ended.wait(REST * worked if self._is_busy() else 0.0)
            self._since = monotonic()
        if self.ended.is_set():
            raise _Superseded
