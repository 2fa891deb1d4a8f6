"""The attention node's share of a model: everything but the routed experts."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megainfer.attention_node.ranks.leading import ALONE, LeadingHalf, Rank
from megainfer.attention_node.routing_record import RoutingRecord
from megainfer.checkpoint.reader import WeightReader
from megainfer.checkpoint.switch import Switch
from megainfer.compute.backend import Backend
from megainfer.compute.batch import StepBatch
from megainfer.compute.half import HalfSource, ModelHalf
from megainfer.compute.kv_cache import KVCache, StateCache
from megainfer.compute.tokens import TokenKernels
from megainfer.config import BLOCK_SIZE
from megainfer.errors import ConfigError
from megainfer.instruments.stage_clock import MicroBatchClock
from megainfer.m2n.mailbox import Part
from megainfer.models.spec import ModelSpec
from megainfer.topology import Placement


@dataclass(frozen=True, slots=True)
class MoEPoint:
    """Where a step waits for its experts.

    hidden: [T, D], normed, what the experts see. parts: one an expert node, in node order.
    """

    layer: int
    hidden: Tensor
    parts: tuple[Part, ...]


class StepModel(Protocol):
    """What an attention node asks of a model, wherever the experts are.

    A step is: `x = embed(batch)`; then `advance(x, layer, ...)` from layer 0, and from the layer
    after each MoEPoint once the experts' replies (and `shared`) have been added into x; when it
    gives None, `logits`.
    """

    spec: ModelSpec
    record: RoutingRecord | None
    """What tokens' gates chose; None where nobody may ask."""

    def place(self, placement: Placement) -> None:
        """Experts are elsewhere from the next step on.

        Raises ConfigError where it can't be so.
        """

    def renewed(self, reader: WeightReader, placement: Placement) -> Switch:
        """Load other weights, in any thread, while it computes with those that it has.

        Raises what loading the first ones does; ConfigError where there can be no others.
        """

    def embed(self, batch: StepBatch) -> Tensor:
        """The step's residual stream, [T, D], which the caller keeps."""

    def advance(
        self, x: Tensor, layer: int, batch: StepBatch, kv: KVCache, clock: MicroBatchClock
    ) -> MoEPoint | None:
        """Compute from `layer` on until a layer needs its experts; None after the last layer.

        x [T, D] is updated in place. Keys and values go into `kv` where the batch says; recurrent
        states in it take the batch's tokens in.
        """

    def shared(self, layer: int, hidden: Tensor) -> Tensor | None:
        """The shared expert's output for a MoEPoint's hidden, [T, D]; None where there is none.

        Both are valid until `advance` is asked again, of whichever step.
        """

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Logits of these rows (int64 [S]) of a finished step's x: float32 [S, V]."""

    @property
    def tokens(self) -> TokenKernels:
        """How tokens are found in its logits."""

    def counters(self) -> dict[str, int]:
        """What it did in which way, since the start; nothing where there is one way."""


class AttentionModel:
    """`StepModel` whose experts are elsewhere; all that it keeps between calls is in the cache.

    max_positions: how many positions are rotated for, the model's own limit unless fewer can occur.
    rank: of the node, with its part of the half.

    Raises what `Backend.half` does.
    """

    def __init__(
        self,
        spec: ModelSpec,
        reader: WeightReader,
        placement: Placement,
        backend: Backend,
        max_positions: int | None = None,
        rank: Rank = ALONE,
    ) -> None:
        self.spec = spec
        self.record: RoutingRecord | None = None
        self._rank = rank
        self._backend = backend
        self._num_experts = placement.num_experts
        self._positions = max_positions or spec.max_position
        self.half = self._loaded(reader, placement)

    def _loaded(self, reader: WeightReader, placement: Placement) -> ModelHalf:
        assert reader.device is self._backend.device, "read where it isn't computed with"
        dtype, shard = self._backend.dtype, self._rank.shard
        source = HalfSource(self.spec, reader, placement, dtype, self._positions, shard)
        own, others = self._backend.half(source), self._rank.others
        return own if others is None else LeadingHalf(own, others)

    def renewed(self, reader: WeightReader, placement: Placement) -> Switch:
        """See `StepModel.renewed`. The cache stays, since it is laid out alike."""
        half = self._loaded(reader, placement)

        def switch() -> None:
            self.half = half

        return switch

    def new_cache(
        self, num_blocks: int, num_states: int = 0, block_size: int = BLOCK_SIZE
    ) -> KVCache:
        """Memory for the keys and values of all layers, laid out as they compute, and for the
        recurrent states of so many sequences.

        Raises ConfigError where they can't with blocks of this size.
        """
        device, dtype = self._backend.device, self._backend.cache_dtype
        shapes = [layer.cache_shapes(block_size, dtype) for layer in self.half.layers]
        states = StateCache([layer.state_shapes for layer in self.half.layers], num_states, device)
        return KVCache(shapes, num_blocks, block_size, dtype, states, device)

    def place(self, placement: Placement) -> None:
        """See `StepModel.place`."""
        if placement.num_experts != self._num_experts:
            raise ConfigError(
                f"layers had {self._num_experts} experts, by the new placement they have "
                f"{placement.num_experts}"
            )
        for layer in self.half.layers:
            layer.place(placement)
        if self.record is not None:
            self.record.place(placement)

    # Not in inference mode: others add replies into the tensor that this returns.
    @torch.no_grad()
    def embed(self, batch: StepBatch) -> Tensor:
        """See `StepModel.embed`."""
        return self.half.embed(batch.token_ids)

    @torch.inference_mode()
    def advance(
        self, x: Tensor, layer: int, batch: StepBatch, kv: KVCache, clock: MicroBatchClock
    ) -> MoEPoint | None:
        """See `StepModel.advance`."""
        layers = self.half.layers
        with clock.span("attention", layer):
            for index in range(layer, len(layers)):
                layers[index].attend(x, batch, kv.layer(index))
                routed = layers[index].feed_forward(x, batch)
                if routed is not None:
                    if self.record is not None:
                        self.record.keep(index, batch, routed.parts)
                    return MoEPoint(index, routed.hidden, routed.parts)
        return None

    @torch.inference_mode()
    def shared(self, layer: int, hidden: Tensor) -> Tensor | None:
        """See `StepModel.shared`."""
        return self.half.layers[layer].shared(hidden)

    @torch.inference_mode()
    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `StepModel.logits`."""
        return self.half.logits(x, rows)

    @property
    def tokens(self) -> TokenKernels:
        """See `StepModel.tokens`."""
        return self._backend.tokens

    def counters(self) -> dict[str, int]:
        """See `StepModel.counters`."""
        return {}
