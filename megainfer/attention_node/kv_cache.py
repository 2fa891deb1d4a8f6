"""The paged KV cache: per layer the tensors that its attention declares, in blocks of tokens."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor


class KVCache:
    """Blocks of `block_size` tokens, the same block ids in every layer.

    layers: of each the shapes of a block, `LayerHalf.cache_shapes`: what lies where in it only the
    half knows that computes with it. Each of a layer's tensors is [num_blocks, *shape].
    """

    def __init__(
        self,
        layers: Sequence[Sequence[tuple[int, ...]]],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._layers = [
            tuple(_zeros((num_blocks, *shape), dtype) for shape in shapes) for shapes in layers
        ]

    def layer(self, layer: int) -> tuple[Tensor, ...]:
        """The tensors of one layer, in the order of their shapes."""
        return self._layers[layer]

    @property
    def bytes(self) -> int:
        """Memory of all layers' tensors."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """From numpy, which leaves it to the kernel to zero a page when it is first touched.

    Torch would touch all of a cache that may never fill, which costs its whole size in time and
    memory.
    """
    pages = np.zeros(prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
