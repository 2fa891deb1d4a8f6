"""Memory at fixed places, which what was recorded reads and writes."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from megainfer.attention_node.graphs.buckets import Bucket
from megainfer.attention_node.model import MoEPoint
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.kv_cache import KVCache
from megainfer.m2n.mailbox import Part


class FixedStep:
    """A decode step of one bucket, T of whose B rows are those of the step at hand.

    The others are padding: a sequence of one token that lies in the cache's last block and has its
    last state, which are nobody's. They are sent to no expert.

    x: [B, D].
    """

    def __init__(self, bucket: Bucket, x: Tensor, kv: KVCache) -> None:
        """x: anything alike in columns and dtype."""
        device, size = kv.device, kv.block_size
        blocks = [kv.num_blocks - 1] * -(-bucket.context // size)
        state = max(kv.states.num_slots - 1, 0)
        longest = ChunkInput([0], bucket.context - 1, blocks, samples=False, state_slot=state)
        self._batch = build_batch([longest] * bucket.rows, device, size)
        b = self._batch
        self._rows = (  # each with what padding has there
            (b.token_ids, 0),
            (b.positions, 0),
            (b.kept_at, blocks[0] * size),
            (b.state_slots, state),
            (b.block_table, blocks[0]),
        )
        self.x = device.empty((bucket.rows, x.shape[1]), x.dtype)
        self._tokens = device.empty((1,), torch.int32)
        self._count = bucket.rows
        self._held: StepBatch | None = None
        self._device = device
        self._hidden: Tensor | None = None
        self._parts: dict[int, Part] = {}  # by expert node
        self._pad(0)

    def batch(self) -> StepBatch:
        """What stages see of the step: on the host, the most that it may be. A new one each time,
        since what is derived from it is a stage's own."""
        return replace(self._batch)

    def take(self, x: Tensor, batch: StepBatch) -> None:
        """From here on it is this step, x [T, D]."""
        count = len(x)
        if batch is not self._held:
            self._held = batch
            if count != self._count:
                self._pad(count)
            self._copy(batch, count)
        self.x[:count].copy_(x)
        self.x[count:].zero_()

    def keep(self, point: MoEPoint) -> None:
        """In what is recorded: leave what goes to experts where the host finds it."""
        if self._hidden is None:
            self._hidden = self._device.empty(point.hidden.shape, point.hidden.dtype)
        self._hidden.copy_(point.hidden)
        for node, part in enumerate(point.parts):
            if part.rows.numel():
                self._keep_part(node, part)

    def point(self, like: MoEPoint) -> MoEPoint:
        """What `keep` left, of the T rows. like: what was recorded.

        hidden is valid until the next step is taken; the parts are the caller's.
        """
        assert self._hidden is not None, "nothing was kept"
        parts = tuple(
            self._own_part(node) if part.rows.numel() else part
            for node, part in enumerate(like.parts)
        )
        return MoEPoint(like.layer, self._hidden[: self._count], parts)

    def _pad(self, count: int) -> None:
        """All rows from `count` on are padding."""
        for values, padding in self._rows:
            values[count:].fill_(padding)
        self._tokens.fill_(count)
        self._count = count

    def _copy(self, batch: StepBatch, count: int) -> None:
        own, table = self._batch, batch.block_table
        for ours, theirs in (
            (own.token_ids, batch.token_ids),
            (own.positions, batch.positions),
            (own.kept_at, batch.kept_at),
            (own.state_slots, batch.state_slots),
        ):
            ours[:count].copy_(theirs)
        width = table.shape[1]
        own.block_table[:count, :width].copy_(table)
        # As `StepBatch` says: nobody's values reach another sequence, even multiplied by zero.
        rest = own.block_table[:count, width:]
        rest.copy_(table[:, :1].expand_as(rest))

    def _keep_part(self, node: int, part: Part) -> None:
        part = part if part.count is None else _without_padding(part, part.count, self._tokens)
        if node not in self._parts:
            empty = self._device.empty
            self._parts[node] = _mapped(lambda values: empty(values.shape, values.dtype), part)
        for ours, theirs in zip(self._parts[node], part, strict=True):
            if ours is not None and theirs is not None:
                ours.copy_(theirs)

    def _own_part(self, node: int) -> Part:
        part = self._parts[node]
        own = _mapped(lambda values: values[: self._count].clone(), part._replace(count=None))
        return own._replace(count=None if part.count is None else part.count.clone())


def _mapped(change: Callable[[Tensor], Tensor], part: Part) -> Part:
    return Part._make(None if values is None else change(values) for values in part)


def _without_padding(part: Part, count: Tensor, tokens: Tensor) -> Part:
    """Only the rows before `tokens`, int32 [1], count; they come first, since rows ascend."""
    number = torch.arange(len(part.rows), device=part.rows.device)
    counts = (number < count) & (part.rows < tokens)
    chosen, places = counts[:, None], part.places
    return Part(
        rows=part.rows.masked_fill(~counts, 0),
        local_ids=part.local_ids.masked_fill(~chosen, -1),
        weights=part.weights.masked_fill(~chosen, 0.0),
        count=counts.sum(dtype=torch.int32)[None],
        places=None if places is None else places.masked_fill(number >= tokens, -1),
    )
