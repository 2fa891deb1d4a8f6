"""Memory at fixed places, which what was recorded reads and writes."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, int32, int64

from megainfer.attention_node.graphs.aside import StepsAside
from megainfer.attention_node.graphs.buckets import Bucket
from megainfer.attention_node.graphs.kept import KeptPoint
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

    def __init__(
        self, bucket: Bucket, x: Tensor, kv: KVCache, aside: StepsAside | None = None
    ) -> None:
        """x: anything alike in columns and dtype. aside: where steps are while others are here;
        None where each is taken once."""
        device, size = kv.device, kv.block_size
        blocks = [kv.num_blocks - 1] * -(-bucket.context // size)
        state = max(kv.states.num_slots - 1, 0)
        longest = ChunkInput([0], bucket.context - 1, blocks, samples=False, state_slot=state)
        own = build_batch([longest] * bucket.rows, device, size)
        rows = (own.token_ids, own.positions, own.kept_at, own.state_slots, own.block_table)
        # All that differs between steps is one run of numbers, so that one copy brings it back;
        # what kernels are given of it begins at multiples of 16 bytes.
        sizes = [2, *(values.numel() + values.numel() % 2 for values in rows)]
        self._memory = device.empty((sum(sizes),), int64)
        number, *parts = self._memory.split_with_sizes(sizes)
        self._tokens = number.view(int32)[:1]
        pairs = zip(parts, rows, strict=True)
        places = [part[: old.numel()].view(old.shape) for part, old in pairs]
        self._rows = tuple(zip(places, (0, 0, blocks[0] * size, state, blocks[0]), strict=True))
        ids, positions, kept_at, states, table = places
        self._batch = replace(
            own,
            token_ids=ids,
            positions=positions,
            kept_at=kept_at,
            state_slots=states,
            block_table=table,
            count=self._tokens,
        )
        self.x = device.empty((bucket.rows, x.shape[1]), x.dtype)
        self._count = 0  # rows of the step that is held; the others are padding
        self._held: StepBatch | None = None
        self._aside = aside
        if aside is not None:
            aside.reserve(len(self._memory))
        self._device = device
        self._kept: KeptPoint | None = None
        self._shared: Tensor | None = None
        self._pad(0)

    def batch(self) -> StepBatch:
        """What stages see of the step: on the host, the most that it may be. A new one each time,
        since what is derived from it is a stage's own."""
        return replace(self._batch)

    def take(self, x: Tensor, batch: StepBatch) -> None:
        """From here on it is this step, x [T, D]."""
        count = len(x)
        if batch is not self._held:
            if self._aside is not None and self._held is not None:
                self._aside.put(self._held, self._memory)
            if self._aside is None or not self._aside.take(batch, self._memory):
                if count != self._count:
                    self._pad(count)
                self._copy(batch, count)
                self.x[count:].zero_()
            self._held, self._count = batch, count
        self.x[:count].copy_(x)

    def keep(self, point: MoEPoint) -> None:
        """In what is recorded: leave what goes to experts where the host finds it."""
        if self._kept is None:
            self._kept = KeptPoint(point, self._device)
        self._kept.fill(point)

    def keep_shared(self, shared: Tensor) -> None:
        """In what is recorded: leave a shared expert's output, [B, D], where the host finds it."""
        if self._shared is None:
            self._shared = self._device.empty(shared.shape, shared.dtype)
        self._shared.copy_(shared)

    @property
    def kept_hidden(self) -> Tensor:
        """[B, D], as `keep` left it."""
        assert self._kept is not None, "nothing was kept"
        return self._kept.hidden

    @property
    def hidden(self) -> Tensor:
        """Of the T rows, as `keep` left it; valid until the next step is taken."""
        return self.kept_hidden[: self._count]

    @property
    def shared(self) -> Tensor:
        """Of the T rows, as `keep_shared` left it; valid until the next step is taken."""
        assert self._shared is not None, "no shared expert was recorded"
        return self._shared[: self._count]

    def parts(self, unsent: Sequence[Part | None]) -> tuple[Part, ...]:
        """The same of parts, which are the caller's; unsent: of nodes for which none was kept."""
        assert self._kept is not None, "nothing was kept"
        own = self._kept.parts(self._count)
        return tuple(own[n] if part is None else part for n, part in enumerate(unsent))

    def _pad(self, count: int) -> None:
        """All rows from `count` on are padding."""
        for values, padding in self._rows:
            values[count:].fill_(padding)
        self._tokens.fill_(count)

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
