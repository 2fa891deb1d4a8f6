"""What an attention node asks of its half of a model, whichever implementation computes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.chain import Chain, CountedExperts
from megainfer.compute.kv_cache import KVCache
from megainfer.device import Device
from megainfer.m2n.mailbox import Part
from megainfer.models.spec import ModelSpec
from megainfer.topology import WHOLE, Placement, Shard


@dataclass(frozen=True, slots=True)
class HalfSource:
    """What a half is loaded from.

    placement: where experts are, to begin with. dtype: of messages.
    max_positions: how many positions are rotated for. shard: whose part of it, where several ranks
    share it: what its layers add is then a part of a sum, and only the first rank's can route.
    """

    spec: ModelSpec
    reader: WeightReader
    placement: Placement
    dtype: torch.dtype
    max_positions: int
    shard: Shard = WHOLE

    @property
    def device(self) -> Device:
        """Where the half computes: where its weights are brought."""
        return self.reader.device


class Routed(NamedTuple):
    """What the experts see, [T, D] in the instance's dtype, and which rows go to each node."""

    hidden: Tensor
    parts: tuple[Part, ...]


class LayerHalf(Protocol):
    """One layer's share of an attention node."""

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the float32 tensors that `attend` keeps a sequence's recurrent state in; () for none.

        A sequence's tokens must come in order, and it has nothing to begin with at position 0.
        """

    def cache_shapes(self, block_size: int, dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
        """Of the tensors of this dtype that `attend` keeps a block of tokens in; their layout is
        its own affair.

        Together they have as many bytes as `AttentionSpec.cached_bytes` of the tokens. Raises
        ConfigError where it can't keep them so.
        """

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """Add attention to x [T, D]; the keys and values of x's tokens go into the cache.

        caches: one tensor of all blocks for each of `cache_shapes`, then one of all states for each
        of `state_shapes`, in which `StepBatch.state_slots` says which is whose.
        """

    def place(self, placement: Placement) -> None:
        """Send tokens to the homes of this placement from the next `feed_forward` on. It has as
        many experts as before; not while a step is between two layers."""

    def feed_forward(self, x: Tensor, batch: StepBatch) -> Routed | None:
        """Where the layer has experts: what they are to compute. Else add the network to x."""

    def shared(self, hidden: Tensor) -> Tensor | None:
        """The shared expert's output for a Routed's hidden, [T, D]; None where there is none."""


@runtime_checkable
class RankLayer(LayerHalf, Protocol):
    """`LayerHalf` of one rank of several, whose part of a sum is to be had apart from x."""

    def attended(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """What `attend` would add to x: [T, D], a new tensor."""

    def fed_forward(self, x: Tensor) -> Tensor:
        """What `feed_forward` would add to x where the layer has no experts, likewise."""


class ModelHalf(Protocol):
    """All layers' shares, and what comes before and after them."""

    @property
    def layers(self) -> Sequence[LayerHalf]: ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """The residual stream to begin with, [T, D], in the implementation's own dtype."""

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Logits of these rows (int64 [S]) of a finished x: float32 [S, V]."""

    def chains(self, experts: Mapping[int, CountedExperts], kv: KVCache) -> Sequence[Chain]:
        """Where all experts are in this process, by layer: the longest runs of layers that it can
        compute over this cache in a single call; none where it has no such calls."""
