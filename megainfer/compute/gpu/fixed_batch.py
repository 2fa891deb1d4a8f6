"""Batches at a fixed place, for stages of experts that a GPU has recorded."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megainfer.compute.experts import ExpertsShape, LayerExperts
from megainfer.compute.gpu.experts import GpuLayerExperts
from megainfer.compute.gpu.kernels.experts.messages import (
    ALIGNMENT,
    FIELDS,
    Line,
    Messages,
    are_aligned,
    lines_of,
)
from megainfer.device import Device, Recordings


class GpuFixedBatch:
    """`experts.FixedBatch`. The table of messages is what changes from one replay to the next, in
    one copy; launches are for all rows that there may be.

    Behind the messages stands a line for the rows that there are not: none of them counts, and
    zeros for them go where nobody looks. Lines behind it are of no rows.
    """

    def __init__(
        self, device: Device, shape: ExpertsShape, dtype: torch.dtype, messages: int, rows: int
    ) -> None:
        self.rows = rows
        self._device, self._most = device, messages
        self._nobodys = device.empty((rows, shape.hidden), dtype)
        width = shape.hidden * dtype.itemsize
        self.messages = Messages(
            device.empty((messages + 1, FIELDS.value), torch.int64),
            rows,
            shape.top_k,
            dtype,
            width,
            reads=(),
            writes=(self._nobodys,),
            aligned=width % ALIGNMENT == 0,
        )
        self._reads: tuple[Tensor, ...] = ()
        self._writes: tuple[Tensor, ...] = ()
        self.take((), (), (), (), ())

    def take(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        counts: Sequence[Tensor | None],
    ) -> None:
        """See `experts.FixedBatch.take`."""
        lines = lines_of(hidden, local_ids, weights, outs, counts)
        missing = self.rows - sum(map(len, hidden))
        assert missing >= 0, f"{self.rows - missing} rows, but there is room for {self.rows}"
        assert len(lines) <= self._most, f"{len(lines)} messages, but at most {self._most}"
        assert are_aligned(lines) or not self.messages.aligned, "memory at odd addresses"
        lines.append(self._nobodys_line(self.rows - missing))
        none = self._nobodys_line(self.rows)
        lines += [none] * (self._most + 1 - len(lines))
        self._device.fill(self.messages.table, torch.tensor(lines, dtype=torch.int64))
        known = (count for count in counts if count is not None)
        self._reads = (*hidden, *local_ids, *weights, *known)
        self._writes = tuple(outs)

    def record(
        self,
        recordings: Recordings,
        layer: LayerExperts,
        count: Callable[[Tensor], object],
    ) -> Callable[[], None]:
        """See `experts.FixedBatch.record`."""
        assert isinstance(layer, GpuLayerExperts)
        _, replay = recordings.make(lambda: count(layer.compute(self.messages, held=())))

        def compute() -> None:
            replay((*self._reads, *layer.memory), self._writes)

        return compute

    def _nobodys_line(self, first: int) -> Line:
        """For the rows from `first` on, of which none counts."""
        return [*[self._nobodys.data_ptr()] * 4, first, 0, 0]
