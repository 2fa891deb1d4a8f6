"""Experts come to a node while it serves: read by a thread of their own, a little at a time.

Nothing waits for it. The thread keeps to itself what it has read until the node's loop asks, and
the node computes with it no earlier than the placement that needs it is entered.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from threading import Event, Lock, Thread, get_native_id
from time import monotonic

from megainfer.checkpoint.reader import WeightReader
from megainfer.errors import MegaInferError
from megainfer.expert_node.experts import ExpertModel, Place
from megainfer.expert_node.handover.asking import Asking
from megainfer.expert_node.loading import ExpertLoader
from megainfer.messages.from_child import Prepared
from megainfer.messages.to_child import Prepare
from megainfer.models.sources import FfnSources

LOOK_SECONDS = 0.02
"""How often a node that has nothing to do looks for what was read."""
REST = 1.0
"""How long the thread rests after each expert, in times of what reading it took: memory bandwidth
is what experts are computed with."""
LEAST_PRIORITY = 19

OpenReader = Callable[[], WeightReader]


class Mover:
    """Brings experts in for one placement at a time; a new wish takes the place of an older one.

    open_reader: of the model's folder, for as long as it reads. asking: who may be asked for the
    experts of a wish, before its folder is opened; None: nobody. Both are called by the thread that
    reads, since they look into files.
    """

    def __init__(
        self,
        model: ExpertModel,
        open_reader: OpenReader,
        asking: Callable[[Prepare], Asking | None] = lambda wish: None,
    ) -> None:
        self._model = model
        self._open_reader = open_reader
        self._asking = asking
        self._reading: _Reading | None = None
        self._wish: Prepare | None = None  # that is not begun
        self._said: list[Prepared] = []

    def prepare(self, wish: Prepare) -> None:
        """Read what the node holds by this placement and has not loaded; `news` says when it has.
        What was read for an older wish, of which nothing is said any more, is kept where this one
        needs it too."""
        self._wish = wish
        if self._reading is None:
            self._begin(wish)
        else:
            self._reading.end()

    def news(self) -> list[Prepared]:
        """Take in what was read; what to say of it."""
        if self._reading is not None:
            self._collect(self._reading)
        said, self._said = self._said, []
        return said

    def sleep_bound(self, timeout: float) -> float:
        """Seconds after which there may be something, at most `timeout`."""
        return timeout if self._reading is None else min(timeout, LOOK_SECONDS)

    def close(self) -> None:
        """Read no more, and forget what is being read; waits for the expert at hand where that is
        read, and for nobody who is asked."""
        if self._reading is not None:
            self._reading.end()
            self._reading.await_left()
        self._reading = self._wish = None

    def _begin(self, wish: Prepare) -> None:
        self._wish = None
        self._model.keep_aside(wish.placement)
        if missing := self._model.missing(wish.placement):
            self._reading = _Reading(
                self._model, self._open_reader, wish.ticket, missing, lambda: self._asking(wish)
            )
            self._reading.start()
        else:
            self._said.append(Prepared(wish.ticket))

    def _collect(self, reading: "_Reading") -> None:
        ended = not reading.is_alive()  # asked first: what it put down last is seen
        while reading.read:
            self._model.take_in(*reading.read.popleft())
        if not ended:
            return
        self._reading = None
        if self._wish is not None:
            self._begin(self._wish)
        else:
            self._said.append(Prepared(reading.ticket, reading.error))


class _Reading(Thread):
    """read: what there is so far. error: why that is not all, None: it is."""

    def __init__(
        self,
        model: ExpertModel,
        open_reader: OpenReader,
        ticket: int,
        places: Sequence[Place],
        asking: Callable[[], Asking | None],
    ) -> None:
        super().__init__(name="moving experts", daemon=True)
        self._model = model
        self._open_reader = open_reader
        self._places, self._find_asking = places, asking
        self._asking: Asking | None = None
        self._ended = Event()
        self._at_files = Lock()
        self.ticket = ticket
        self.read: deque[tuple[Place, object]] = deque()
        self.error: str | None = "the thread that reads experts has died"

    def end(self) -> None:
        """It ends within the time of one expert."""
        self._ended.set()
        if (asking := self._asking) is not None:
            asking.end()

    def await_left(self) -> None:
        """Having been told to end, it touches neither the model nor its files any more. It may
        still be waiting for who doesn't answer, by a connection that it has to itself."""
        with self._at_files:
            pass

    def run(self) -> None:
        if sys.platform == "linux":  # where a priority is a thread's
            os.setpriority(os.PRIO_PROCESS, get_native_id(), LEAST_PRIORITY)
        try:
            places = self._given()
            with self._at_files:
                if places and not self._ended.is_set():
                    with self._open_reader() as reader:
                        self._read_all(reader, places)
        except (MegaInferError, OSError) as error:
            self.error = str(error)
        else:
            self.error = None

    def _given(self) -> Sequence[Place]:
        """Of all places, those that nobody gives."""
        with self._at_files:
            if self._ended.is_set():
                return []
            self._asking = asking = self._find_asking()
        if asking is None:
            return self._places
        if self._ended.is_set():  # before there was anybody to tell
            asking.end()
        lacking = []
        with closing(asking):
            for place in self._places:
                started = monotonic()
                prepared = asking.prepared(self._model.layer(place[0]), place)
                if prepared is None:
                    lacking.append(place)
                else:
                    self.read.append((place, prepared))
                if self._rest(started):
                    break
        return lacking

    def _read_all(self, reader: WeightReader, places: Sequence[Place]) -> None:
        loaders: dict[int, ExpertLoader] = {}
        for place in places:
            started = monotonic()
            layer, expert = place
            if layer not in loaders:  # the last layer's memory is not needed any more
                sources = FfnSources(self._model.spec, layer)
                loaders = {layer: ExpertLoader(sources, reader, self._model.shard)}
            prepared = loaders[layer].prepared(self._model.layer(layer), expert)
            self.read.append((place, prepared))
            if self._rest(started):
                return

    def _rest(self, started: float) -> bool:
        """For as long as an expert took; whether no more is wanted."""
        return self._ended.wait(REST * (monotonic() - started))
