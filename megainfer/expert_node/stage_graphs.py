"""Stages of an expert node that its device has recorded: a batch of a layer, up to its replies."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.compute.experts import FixedBatch, LayerExperts
from megainfer.device import Recordings
from megainfer.m2n.mailbox import Dispatch

LEAST_ROWS = 8
"""Of a bucket: rows that there are not cost next to nothing where no expert is read for them."""


class StageBounds(NamedTuple):
    """Which batches are recorded. messages: from so many attention nodes at most. rows: of all of
    them together. most_bytes: of the device's memory for all recordings."""

    messages: int
    rows: int
    most_bytes: int

    @property
    def buckets(self) -> tuple[int, ...]:
        """Rows of batches, ascending.

        >>> StageBounds(messages=2, rows=100, most_bytes=0).buckets
        (8, 16, 32, 64, 100)
        """
        sizes, size = [self.rows], LEAST_ROWS
        while size < self.rows:
            sizes.append(size)
            size *= 2
        return tuple(sorted(sizes))


class _Stage(NamedTuple):
    """A layer's, of a bucket. compute: does it with what the batch is."""

    batch: FixedBatch
    compute: Callable[[], None]


class StageGraphs:
    """One recording a layer and bucket of rows, in which neither micro-batches, epochs nor moving
    experts have a part: what differs is written to one place before each replay, and how many rows
    count is on the device.

    batches: one a bucket, ascending by their rows. count: is given a layer and the choices of each
    of its slots, within what is recorded.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerExperts],
        batches: Sequence[FixedBatch],
        recordings: Recordings,
        count: Callable[[int, Tensor], None],
    ) -> None:
        self._batches, self._recordings = batches, recordings
        self._stages: dict[int, list[_Stage]] = {}  # by layer, ascending by their rows
        self._replays = self._eager = 0
        self._record(layers, count)

    def replay(self, layer: int, dispatches: Sequence[Dispatch], outs: Sequence[Tensor]) -> bool:
        """Compute the batch by what was recorded for it; False where nothing was."""
        rows = sum(len(dispatch.hidden) for dispatch in dispatches)
        stage = self._stage(layer, rows)
        if stage is None:
            self._eager += 1
            return False
        self._replays += 1
        stage.batch.take(
            [dispatch.hidden for dispatch in dispatches],
            [dispatch.local_ids for dispatch in dispatches],
            [dispatch.weights for dispatch in dispatches],
            outs,
            [dispatch.count for dispatch in dispatches],
        )
        stage.compute()
        return True

    def counters(self) -> dict[str, int]:
        """See `Recordings.counters`."""
        return self._recordings.counters(self._replays, self._eager)

    def _stage(self, layer: int, rows: int) -> "_Stage | None":
        """The smallest in which so many have room."""
        stages = (s for s in self._stages.get(layer, ()) if s.batch.rows >= rows > 0)
        return next(stages, None)

    @torch.inference_mode()
    def _record(
        self, layers: Mapping[int, LayerExperts], count: Callable[[int, Tensor], None]
    ) -> None:
        """Of the largest batches first, whose memory the others then share."""
        for batch in reversed(self._batches):
            for number, layer in layers.items():
                if not self._recordings.has_room():
                    return
                compute = batch.record(self._recordings, layer, partial(count, number))
                self._stages.setdefault(number, []).insert(0, _Stage(batch, compute))
