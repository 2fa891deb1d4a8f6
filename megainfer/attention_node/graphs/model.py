"""A model whose decode stages its device has recorded."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.attention_node.graphs.aside import StepsAside
from megainfer.attention_node.graphs.buckets import Bucket, fitting_bucket
from megainfer.attention_node.graphs.fixed import FixedStep
from megainfer.attention_node.model import AttentionModel, MoEPoint
from megainfer.checkpoint.reader import WeightReader
from megainfer.checkpoint.switch import Switch
from megainfer.compute.batch import StepBatch
from megainfer.compute.kv_cache import KVCache
from megainfer.compute.tokens import TokenKernels
from megainfer.device import OnGraph, Recordings, Replay
from megainfer.errors import ConfigError
from megainfer.instruments.stage_clock import MicroBatchClock, StageClock
from megainfer.m2n.mailbox import Part
from megainfer.models.spec import ModelSpec, MoESpec
from megainfer.topology import Placement


class _Graph(NamedTuple):
    """replay: gives the stage to the device. layer: whose experts it ends with, None after the
    last. unsent: of each expert node the part without rows, None of one that is sent some. shared:
    gives the shared expert of that layer, where it was recorded."""

    replay: Replay
    layer: int | None = None
    unsent: tuple[Part | None, ...] = ()
    shared: Replay | None = None


class _Left(NamedTuple):
    """What was replayed last. hidden: as it was handed over."""

    hidden: Tensor
    graph: _Graph
    step: FixedStep


class GraphedModel:
    """`model.StepModel`: a stage is all between the experts of one layer and those of the next,
    and a layer's shared expert, which is computed while routed ones are asked, is another.

    What differs from one replay to the next is copied to fixed places before, so that neither
    micro-batches nor epochs multiply graphs, of which there is one a stage and bucket. Steps that
    no bucket fits, such as prompts, are computed as ever, and counted.

    Where experts live is read from tables that stay where they are, so only a placement with other
    expert nodes is recorded anew, when it is entered.

    kv: the one cache, whose last block and last state are nobody's. buckets: ascending. most_bytes:
    what graphs may take of the device's memory; once that is taken, the rest isn't recorded.
    """

    def __init__(
        self,
        model: AttentionModel,
        kv: KVCache,
        buckets: Sequence[Bucket],
        most_bytes: int,
        placement: Placement,
        on_graph: OnGraph = lambda done, total: None,
    ) -> None:
        self.spec: ModelSpec = model.spec
        self.record = model.record
        self.half = model.half
        self._model, self._kv, self._buckets = model, kv, buckets
        self._most_bytes, self._on_graph = most_bytes, on_graph
        self._replays = self._eager = 0
        self._steps: dict[Bucket, FixedStep] = {}
        self._graphs: dict[tuple[int, Bucket], _Graph] = {}  # by first layer
        self._left: _Left | None = None
        self._nodes = _nodes_of(placement)
        self._record()

    def place(self, placement: Placement) -> None:
        """See `StepModel.place`."""
        self._model.place(placement)
        if _nodes_of(placement) != self._nodes:
            self._nodes = _nodes_of(placement)
            self._record()

    def renewed(self, reader: WeightReader, placement: Placement) -> Switch:
        """See `StepModel.renewed`: graphs hold the addresses of the weights."""
        raise ConfigError("stages that a GPU has recorded can't be computed with other weights")

    def embed(self, batch: StepBatch) -> Tensor:
        """See `StepModel.embed`."""
        return self._model.embed(batch)

    def advance(
        self, x: Tensor, layer: int, batch: StepBatch, kv: KVCache, clock: MicroBatchClock
    ) -> MoEPoint | None:
        """See `StepModel.advance`."""
        assert kv is self._kv, "graphs are bound to one cache"
        if layer == len(self.spec.layers):
            return None
        bucket = fitting_bucket(self._buckets, batch.chunks)
        graph = None if bucket is None else self._graphs.get((layer, bucket))
        if bucket is None or graph is None:
            self._eager += 1
            return self._model.advance(x, layer, batch, kv, clock)
        self._replays += 1
        with clock.span("attention", layer):
            return self._replayed(x, batch, graph, self._steps[bucket])

    def shared(self, layer: int, hidden: Tensor) -> Tensor | None:
        """See `StepModel.shared`."""
        left = self._left
        if left is None or hidden is not left.hidden or left.graph.shared is None:
            return self._model.shared(layer, hidden)
        left.graph.shared()
        return left.step.shared

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `StepModel.logits`."""
        return self._model.logits(x, rows)

    @property
    def tokens(self) -> TokenKernels:
        """See `StepModel.tokens`."""
        return self._model.tokens

    def counters(self) -> dict[str, int]:
        """See `StepModel.counters`."""
        return self._recordings.counters(self._replays, self._eager)

    @torch.inference_mode()
    def _replayed(
        self, x: Tensor, batch: StepBatch, graph: _Graph, step: FixedStep
    ) -> MoEPoint | None:
        step.take(x, batch)
        graph.replay()
        x.copy_(step.x[: len(x)])
        if graph.layer is None:
            return None
        hidden = step.hidden
        self._left = _Left(hidden, graph, step)
        return MoEPoint(graph.layer, hidden, step.parts(graph.unsent))

    def _record(self) -> None:
        """The stages of all buckets, the largest first, whose memory the others then share."""
        self._left = None
        self._graphs.clear()
        self._steps.clear()
        starts = (0, *(layer + 1 for layer in self.spec.moe_layers))
        stages = [layer for layer in starts if layer < len(self.spec.layers)]
        each = len(stages) + sum(map(self._has_shared, self.spec.moe_layers))
        self._recordings = Recordings(
            *(self._kv.device, self._most_bytes, each * len(self._buckets), self._on_graph)
        )
        aside = StepsAside(self._kv.device)
        for bucket in reversed(self._buckets):
            step = self._steps[bucket] = FixedStep(bucket, self._sample_x(), self._kv, aside)
            for layer in stages:
                if not self._recordings.has_room():
                    return
                self._graphs[layer, bucket] = self._recorded(layer, step)

    def _recorded(self, layer: int, step: FixedStep) -> _Graph:
        step.x.zero_()
        point, replay = self._recordings.make(partial(self._stage, layer, step))
        if point is None:
            return _Graph(replay)
        unsent = tuple(None if part.rows.numel() else part for part in point.parts)
        shared = None
        if self._has_shared(point.layer) and self._recordings.has_room():
            _, shared = self._recordings.make(partial(self._shared, point.layer, step))
        return _Graph(replay, point.layer, unsent, shared)

    def _has_shared(self, layer: int) -> bool:
        ffn = self.spec.layers[layer].ffn
        return isinstance(ffn, MoESpec) and ffn.shared is not None

    def _shared(self, layer: int, step: FixedStep) -> None:
        with torch.inference_mode():
            shared = self._model.shared(layer, step.kept_hidden)
            assert shared is not None, f"layer {layer} has a shared expert"
            step.keep_shared(shared)

    def _stage(self, layer: int, step: FixedStep) -> MoEPoint | None:
        point = self._model.advance(step.x, layer, step.batch(), self._kv, _NO_CLOCK)
        if point is not None:
            with torch.inference_mode():
                step.keep(point)
        return point

    def _sample_x(self) -> Tensor:
        """A residual stream of no rows: its width and dtype."""
        return self.half.embed(self._kv.device.upload(torch.empty(0, dtype=torch.int64)))


_NO_CLOCK = StageClock().of(0)


def _nodes_of(placement: Placement) -> tuple[int, tuple[frozenset[int], ...]]:
    """How many expert nodes there are, and which of them each layer's tokens may go to."""
    return placement.num_nodes, tuple(
        frozenset(node for homes in placement.homes(layer) for node, _ in homes)
        for layer in placement.layers
    )
