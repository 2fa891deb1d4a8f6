"""Decode steps of a colocated model that its device has recorded, from the first layer to the last.

A step's experts are here, so nothing has to be awaited between its layers: one recording has them
all. It takes no more memory than one a layer would, since what a layer needs is free for the next.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megainfer.attention_node.graphs import Bucket, FixedStep, buckets_of, fitting_bucket
from megainfer.attention_node.model import MoEPoint
from megainfer.checkpoint.reader import WeightReader
from megainfer.checkpoint.switch import Switch
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.batch import StepBatch
from megainfer.compute.kv_cache import KVCache
from megainfer.compute.tokens import TokenKernels
from megainfer.device import OnGraph, Recordings, Replay
from megainfer.errors import ConfigError
from megainfer.instruments.stage_clock import NOT_OF_ONE, MicroBatchClock
from megainfer.models.spec import ModelSpec
from megainfer.topology import Placement

if TYPE_CHECKING:  # which knows of sampling, servers and whatever else there is
    from megainfer.launch.plan import Plan

LAYERS = "layers"
"""The stage of a recorded step: all layers, their experts included."""


class GraphedSteps:
    """`attention_node.model.StepModel` over a `ColocatedModel`, one recording a bucket of decode
    steps. Steps that no bucket fits, such as prompts, are computed as ever, and counted.

    kv: the one cache, whose last block and last state are nobody's. buckets: ascending.
    """

    def __init__(
        self,
        model: ColocatedModel,
        kv: KVCache,
        buckets: Sequence[Bucket],
        most_bytes: int,
        on_graph: OnGraph = lambda done, total: None,
    ) -> None:
        self.spec: ModelSpec = model.spec
        self.record = model.record
        self._model, self._kv = model, kv
        self._replays = self._eager = 0
        self._recordings = Recordings(kv.device, most_bytes, len(buckets), on_graph)
        recorded = self._recorded(buckets)
        self._steps = {bucket: recorded[bucket] for bucket in sorted(recorded)}

    def place(self, placement: Placement) -> None:
        """See `StepModel.place`: which slot an expert is in stands where recordings look."""
        self._model.place(placement)

    def renewed(self, reader: WeightReader, placement: Placement) -> Switch:
        """See `StepModel.renewed`: recordings hold the addresses of the weights."""
        raise ConfigError("steps that a GPU has recorded can't be computed with other weights")

    def embed(self, batch: StepBatch) -> Tensor:
        """See `StepModel.embed`."""
        return self._model.embed(batch)

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

    def shared(self, layer: int, hidden: Tensor) -> Tensor | None:
        """See `StepModel.shared`."""
        return self._model.shared(layer, hidden)

    def advance(
        self, x: Tensor, layer: int, batch: StepBatch, kv: KVCache, clock: MicroBatchClock
    ) -> MoEPoint | None:
        """See `StepModel.advance`: to the end; never a MoEPoint."""
        assert kv is self._kv, "recordings are bound to one cache"
        bucket = None if layer else fitting_bucket([*self._steps], batch.chunks)
        if bucket is None:
            self._eager += 1
            return self._model.advance(x, layer, batch, kv, clock)
        self._replays += 1
        step, replay = self._steps[bucket]
        with clock.span(LAYERS, NOT_OF_ONE), torch.inference_mode():
            step.take(x, batch)
            replay()
            x.copy_(step.x[: len(x)])
        return None

    def _recorded(self, buckets: Sequence[Bucket]) -> dict[Bucket, tuple[FixedStep, Replay]]:
        """Of the largest steps first, whose memory the others then share."""
        recorded = dict[Bucket, tuple[FixedStep, Replay]]()
        nothing = self._kv.device.upload(torch.empty(0, dtype=torch.int64))
        x = self._model.half.embed(nothing)  # of no rows: its width and dtype
        for bucket in reversed(buckets):
            if not self._recordings.has_room():
                break
            step = FixedStep(bucket, x, self._kv)
            step.x.zero_()
            _, replay = self._recordings.make(partial(self._through, step))
            recorded[bucket] = step, replay
        return recorded

    def _through(self, step: FixedStep) -> None:
        self._model.through(step.x, step.batch())


def with_step_graphs(
    plan: "Plan", model: ColocatedModel, kv: KVCache, on_graph: OnGraph
) -> ColocatedModel | GraphedSteps:
    """The model with its decode steps recorded where the plan has room for that; else itself."""
    most_bytes = plan.attention_ledger().of("graphs")
    if not most_bytes:
        return model
    rows = min(plan.config.max_num_seqs, plan.config.max_num_batched_tokens)
    return GraphedSteps(model, kv, buckets_of(rows, plan.max_model_len), most_bytes, on_graph)
