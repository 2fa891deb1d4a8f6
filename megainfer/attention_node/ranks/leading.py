"""Rank 0's half of a model whose heads, channels and vocabulary several ranks share.

Each layer's norms and router are rank 0's, and so is the residual stream. What attention, a dense
network or a shared expert adds to it is a sum over ranks: all compute from the same rows, and rank
0 adds what the others made of them to its own, in the order of ranks.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megainfer.attention_node.ranks.step_numbers import step_numbers
from megainfer.compute.batch import StepBatch
from megainfer.compute.chain import Chain, CountedExperts
from megainfer.compute.half import LayerHalf, ModelHalf, Routed
from megainfer.compute.kv_cache import KVCache
from megainfer.device import HOST, Device
from megainfer.models.sources import ModelSources
from megainfer.models.spec import DenseSpec, ModelSpec, MoESpec
from megainfer.ranks.half import Work
from megainfer.ranks.layout import HalfLayout
from megainfer.ranks.road import Given
from megainfer.ranks.sums import add_in_order
from megainfer.topology import WHOLE, Placement, Shard

if TYPE_CHECKING:  # msgspec, without which a node of one rank can be tried on a GPU
    from megainfer.launch.heartbeat import Page
    from megainfer.launch.ranks.seats import LeadingSeat

STEPS_KEPT = 16
"""Steps that the others know at a time: more than there are micro-batches."""


class HalfRanks:
    """The other ranks of an attention node. device, page: as `LeadingSeat.road`. links: what the
    supervisor says goes on there."""

    def __init__(
        self,
        seat: "LeadingSeat[HalfLayout]",
        node: int,
        spec: ModelSpec,
        spin_seconds: float,
        device: Device = HOST,
        page: "Page | None" = None,
    ) -> None:
        from megainfer.launch.ranks.links import RankLinks

        self.spec = spec
        self._layout = layout = seat.layout
        self._road = seat.road(f"attention node {node}", spin_seconds, device, page)
        others = range(1, layout.ranks)
        self._results = [layout.result(rank) for rank in others]
        parts = [ModelSources(spec, Shard(rank, layout.ranks)).vocabulary for rank in others]
        self._logits = [
            layout.logits(rank, end - first)
            for rank, (first, end) in zip(others, parts, strict=True)
        ]
        self._steps: OrderedDict[int, tuple[StepBatch, int]] = OrderedDict()  # by id, its place
        self.links = RankLinks(seat.links, self._road.message)

    def await_loaded(self) -> None:
        """Until all have their weights. Raises NodeDied."""
        self._road.await_loaded()

    def check(self) -> None:
        """Raises NodeDied where they don't get on."""
        self._road.check()

    def close(self) -> None:
        """They are told no more."""
        self.links.close()
        self._road.close()

    def begin(self, work: Work, x: Tensor, layer: int = 0, batch: StepBatch | None = None) -> None:
        """All compute this for the rows x, [T, D] of any float dtype. Raises NodeDied."""
        place = 0 if batch is None else self._place_of(batch)
        made = self._logits if work is Work.LOGITS else self._results
        self._road.begin((work, layer, len(x), place), [Given(self._layout.residual, [x])], made)

    def begin_embedding(self, token_ids: Tensor) -> None:
        """int64 [T]. Raises NodeDied."""
        order = Work.EMBED, 0, len(token_ids), 0
        self._road.begin(order, [Given(self._layout.token_ids, [token_ids])], self._results)

    def add_to(self, x: Tensor) -> None:
        """What the others made of the rows, to x, [T, D]. Raises NodeDied."""
        add_in_order(x, self._road.results())

    def logits(self, half: ModelHalf, x: Tensor, rows: Tensor) -> Tensor:
        """Of the whole vocabulary, as `ModelHalf.logits`. Raises NodeDied."""
        at_a_time = self._layout.logit_rows
        starts = range(0, max(len(rows), 1), at_a_time)
        pieces = (rows[first : first + at_a_time] for first in starts)
        return torch.cat([self._some_logits(half, x, piece) for piece in pieces])

    def _some_logits(self, half: ModelHalf, x: Tensor, rows: Tensor) -> Tensor:
        self.begin(Work.LOGITS, x[rows])
        own = half.logits(x, rows)
        return torch.cat([own, *self._road.results()], dim=1)

    def _place_of(self, batch: StepBatch) -> int:
        """Where the others have this step, of which they are told when it is new."""
        known = self._steps.get(id(batch))
        if known is not None:
            self._steps.move_to_end(id(batch))
            return known[1]
        place = len(self._steps)
        if place == STEPS_KEPT:
            _, (_, place) = self._steps.popitem(last=False)
        self._steps[id(batch)] = batch, place  # kept, so that no other gets its id
        numbers = step_numbers(batch)
        order = Work.STEP, 0, len(numbers), place
        self._road.begin(order, [Given(self._layout.step, [numbers])])
        return place


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank among those of its node. shard: whose part of the model it has. others: of rank 0,
    the ranks with the other parts; None of one that follows, or is alone."""

    shard: Shard = WHOLE
    others: HalfRanks | None = None


ALONE = Rank()


class LeadingHalf:
    """`half.ModelHalf` of all ranks: rank 0's own, and what the others have of it."""

    def __init__(self, own: ModelHalf, others: HalfRanks) -> None:
        self._own = own
        self._others = others
        self.layers = [_LeadingLayer(layer, i, others) for i, layer in enumerate(own.layers)]

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `half.ModelHalf.embed`."""
        self._others.begin_embedding(token_ids)
        x = self._own.embed(token_ids)
        self._others.add_to(x)  # zeros, of tokens that aren't theirs
        return x

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `half.ModelHalf.logits`."""
        return self._others.logits(self._own, x, rows)

    def chains(self, experts: Mapping[int, CountedExperts], kv: KVCache) -> Sequence[Chain]:
        """None: all experts are elsewhere."""
        return ()


class _LeadingLayer:
    """`half.LayerHalf`, likewise."""

    def __init__(self, own: LayerHalf, layer: int, others: HalfRanks) -> None:
        self._own = own
        self._layer = layer
        self._others = others
        self._ffn = others.spec.layers[layer].ffn

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of rank 0."""
        return self._own.state_shapes

    def cache_shapes(self, block_size: int, dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
        """Of rank 0."""
        return self._own.cache_shapes(block_size, dtype)

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        self._others.begin(Work.ATTEND, x, self._layer, batch)
        self._own.attend(x, batch, caches)
        self._others.add_to(x)

    def place(self, placement: Placement) -> None:
        """See `half.LayerHalf.place`."""
        self._own.place(placement)

    def feed_forward(self, x: Tensor, batch: StepBatch) -> Routed | None:
        """See `half.LayerHalf.feed_forward`."""
        if isinstance(self._ffn, MoESpec):
            return self._own.feed_forward(x, batch)
        self._others.begin(Work.DENSE, x, self._layer, batch)
        self._own.feed_forward(x, batch)
        self._others.add_to(x)
        return None

    def shared(self, hidden: Tensor) -> Tensor | None:
        """See `half.LayerHalf.shared`."""
        if isinstance(self._ffn, DenseSpec) or self._ffn.shared is None:
            return None
        self._others.begin(Work.SHARED, hidden, self._layer)
        own = self._own.shared(hidden)
        assert own is not None, f"layer {self._layer} has a shared expert"
        total = own.to(torch.float32)
        self._others.add_to(total)
        return total.to(own.dtype)
