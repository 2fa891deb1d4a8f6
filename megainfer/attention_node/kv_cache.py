"""The paged KV cache: per layer the tensors that its attention declares, in blocks of tokens."""

from math import prod

import numpy as np
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
        self._layers = [
            tuple(
                _zeros((num_blocks, block_size, *shape), dtype)
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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros, not garbage: what is masked out is still multiplied, and 0 * NaN is NaN.

    From numpy, which leaves it to the kernel to zero a page when it is first touched: torch would
    touch all of a cache that may never fill, at the cost of its whole size in time and memory.
    """
    pages = np.zeros(prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
