"""The attention node's share of a model: everything but the routed experts."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from megainfer.attention_node.batch import StepBatch
from megainfer.attention_node.kv_cache import KVCache
from megainfer.attention_node.layer import Layer
from megainfer.kernels import reference as kernels
from megainfer.m2n.mailbox import Part
from megainfer.models.sources import ModelSources
from megainfer.models.spec import AttentionSpec, ModelSpec
from megainfer.topology import Placement
from megainfer.weights import WeightReader


@dataclass(frozen=True, slots=True)
class MoEPoint:
    """Where a step waits for its experts.

    hidden: [T, D], normed, what the experts see. parts: one an expert node, in node order.
    """

    layer: int
    hidden: Tensor
    parts: tuple[Part, ...]


class AttentionModel:
    """Weights and computation of an attention node; it keeps no state between calls.

    A step is: `x = embed(batch)`; then `advance(x, layer, ...)` from layer 0, and from the layer
    after each MoEPoint once the experts' replies (and `shared`) have been added into x; when it
    gives None, `logits`. max_positions: how many positions are rotated for, the model's own limit
    unless fewer can occur.

    Raises CheckpointError when a weight is missing or misshapen.
    """

    def __init__(
        self,
        spec: ModelSpec,
        reader: WeightReader,
        placement: Placement,
        dtype: torch.dtype,
        max_positions: int | None = None,
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        sources = ModelSources(spec)
        self._embedding = reader.load(sources.embedding(), dtype)
        self._final_norm = reader.load(sources.final_norm(), dtype)
        head = sources.lm_head()
        self._lm_head = reader.load(head, dtype) if head else self._embedding
        homes = kernels.expert_homes(
            [placement.home(e) for e in range(placement.num_experts)], placement.num_nodes
        )
        rotary = _rotary_tables(spec, max_positions or spec.max_position, dtype)
        self._layers = [
            Layer(spec, index, reader, homes, rotary[layer.attention], dtype)
            for index, layer in enumerate(spec.layers)
        ]

    # Not in inference mode: others add replies into the tensor that this returns.
    @torch.no_grad()
    def embed(self, batch: StepBatch) -> Tensor:
        """The step's residual stream, [T, D], which the caller keeps."""
        return embedding(batch.token_ids, self._embedding)

    @torch.inference_mode()
    def advance(self, x: Tensor, layer: int, batch: StepBatch, kv: KVCache) -> MoEPoint | None:
        """Compute from `layer` on until a layer needs its experts; None after the last layer.

        x [T, D] is updated in place. Keys and values go into `kv` at the batch's slots.
        """
        for index in range(layer, len(self._layers)):
            half = self._layers[index]
            x += half.attention.forward(x, batch, kv.layer(index))
            if half.dense is not None:
                x += half.dense.forward(x)
            if half.gate is not None:
                hidden, parts = half.gate.forward(x)
                return MoEPoint(index, hidden, parts)
        return None

    @torch.inference_mode()
    def shared(self, layer: int, hidden: Tensor) -> Tensor | None:
        """The shared expert's output for a MoEPoint's hidden, [T, D]; None where there is none."""
        gate = self._layers[layer].gate
        if gate is None or gate.shared is None:
            return None
        return gate.shared.forward(hidden)

    @torch.inference_mode()
    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Logits of these rows (int64 [S]) of a finished step's x: float32 [S, V]."""
        hidden = kernels.rms_norm(x[rows], self._final_norm, self.spec.norm_eps)
        return linear(hidden, self._lm_head).to(torch.float32)


def _rotary_tables(
    spec: ModelSpec, max_positions: int, dtype: torch.dtype
) -> dict[AttentionSpec, Tensor]:
    """One table for each kind of attention in the model."""
    kinds = {layer.attention for layer in spec.layers}
    return {
        kind: kernels.rotary_table(kind.rope.theta, kind.head_dim, max_positions, dtype)
        for kind in kinds
    }
