"""The paged KV cache: per layer the tensors that its attention declares, in blocks of tokens."""

import torch
from torch import Tensor

from megainfer.models.spec import ModelSpec


class KVCache:
    """Blocks of `block_size` tokens, the same block ids in every layer.

    Each of a layer's tensors is [num_blocks, block_size, *shape] for a shape of
    `AttentionSpec.cache_shapes`: grouped attention keeps keys and values, each [Hkv, d] a token.
    """

    def __init__(
        self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Zeros, not garbage: what is masked out is still multiplied, and 0 * NaN is NaN.
        self._layers = [
            tuple(
                torch.zeros(num_blocks, block_size, *shape, dtype=dtype)
                for shape in layer.attention.cache_shapes
            )
            for layer in spec.layers
        ]

    def layer(self, layer: int) -> tuple[Tensor, ...]:
        """The tensors of one layer, in the order of its cache_shapes."""
        return self._layers[layer]

    @property
    def bytes(self) -> int:
        """Memory of all layers' tensors."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)
