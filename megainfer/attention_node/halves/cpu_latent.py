"""Multi-head latent attention of a half whose other parts are in C++."""

import torch
from torch import Tensor

from megainfer.attention_node.batch import StepBatch
from megainfer.attention_node.halves import reference_latent
from megainfer.attention_node.halves.cpu_loader import Loader
from megainfer.kernels.cpu.attention import BLOCK_TOKENS
from megainfer.models.sources import LatentSources


class LatentAttention:
    """In float32 over the instance's cache, the residual stream's part of a layer included."""

    state_shapes: tuple[tuple[int, ...], ...] = ()

    def __init__(self, sources: LatentSources, loader: Loader, rotary: Tensor) -> None:
        self._residual = sources.spec.multipliers.residual
        self._shapes = sources.attention.cache_shapes
        self._attention = reference_latent.LatentAttention(
            sources, loader.source.reader, rotary, torch.float32
        )

    @property
    def block_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the tensors that a block of tokens is kept in."""
        return tuple((BLOCK_TOKENS, *shape) for shape in self._shapes)

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        x.add_(self._attention.forward(x, batch, caches), alpha=self._residual)
