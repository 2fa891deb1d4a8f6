"""How a message is shown once a device has done what comes before it in its stream."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from mmap import mmap
from typing import Any, Protocol

from torch import Tensor

from megainfer.device import Device

Place = Any
"""Where a word is, as whoever stores it wants to know."""


class HostWords(Protocol):
    """64-bit words of the host's memory, as a device's streams store them."""

    def reach(self, region: mmap, offsets: Sequence[int]) -> Sequence[Place]:
        """The places of the words at these offsets (bytes, multiples of 8), until `leave`."""

    def leave(self, region: mmap) -> None:
        """Nothing is stored there any more. Waits for what is on its way, in whichever stream:
        nothing but the device holds that up."""

    def store(self, words: Sequence[tuple[Place, int]]) -> None:
        """Give these stores to the device's current stream: each is seen after all that the stream
        was given before it, by whoever else reads that memory, too."""


class Publisher:
    """Gives the words of messages to the current stream of a device."""

    def __init__(self, device: Device, words: HostWords) -> None:
        self.device = device
        self._words = words
        self.reach, self.leave = words.reach, words.leave
        self._held = 0
        self._stores: list[tuple[Place, int]] = []
        self._shown: list[Tensor] = []

    def publish(self, place: Place, word: int, shown: Iterable[Tensor]) -> None:
        """Store `word` after the work that has filled what it shows."""
        self._stores.append((place, word))
        self._shown.extend(shown)
        if not self._held:
            self._give()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is published within it is given to the stream at its end, all at once."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._give()

    def _give(self) -> None:
        stores, self._stores = self._stores, []
        shown, self._shown = self._shown, []
        if stores:
            self.device.launch(partial(self._words.store, stores), shown, [], name="publish")
