"""Pinned memory through which the host's values go to a device, a piece at a time."""

from collections.abc import Callable
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from megainfer.device.device import Device, Event

PIECE_BYTES = 16 * 2**20
PIECES = 2


class Staging:
    """Large tensors on their way to a device, by whichever thread.

    Only one that finds every piece still on its way waits, for the oldest: so that weights of any
    size pass through memory of a fixed one.

    pinned: memory of so many bytes (uint8) that the device copies from by itself.
    """

    def __init__(
        self,
        device: Device,
        pinned: Callable[[int], Tensor],
        piece_bytes: int = PIECE_BYTES,
        pieces: int = PIECES,
    ) -> None:
        self._device = device
        self._pinned = pinned
        self._bytes = piece_bytes
        self._pieces: list[tuple[Tensor, Event]] = []  # each with the end of its last copy
        self._most = pieces
        self._next = 0
        self._lock = Lock()

    def upload(self, host: Tensor, to: Tensor) -> None:
        """Give the copy of `host` to `to`, contiguous and alike, to the current stream. From here
        on `host` may change."""
        values, into = host.contiguous().view(-1), to.view(-1)
        step = max(1, self._bytes // host.itemsize)
        with self._lock:
            for first in range(0, len(values), step):
                part = values[first : first + step]
                memory, copied = self._piece()
                piece = memory[: part.nbytes].view(part.dtype)
                piece.copy_(part)
                out = into[first : first + step]
                copy = partial(out.copy_, piece, non_blocking=True)
                self._device.launch(copy, [piece], [out], name="upload")
                copied.record()

    def _piece(self) -> tuple[Tensor, Event]:
        """The one that was given away longest ago, free again."""
        if len(self._pieces) < self._most:
            with torch.inference_mode(False):  # written in any mode from here on
                self._pieces.append((self._pinned(self._bytes), self._device.event()))
            return self._pieces[-1]
        memory, copied = self._pieces[self._next]
        self._next = (self._next + 1) % self._most
        copied.synchronize()
        return memory, copied
