"""What attention keeps of sequences: keys and values in blocks of tokens, and recurrent states."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from megainfer.device import HOST, Device

CACHE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
"""By the names of `config.KV_CACHE_DTYPES`."""


class StateCache:
    """Recurrent states of `num_slots` sequences, the same slot ids in every layer.

    layers: of each `LayerHalf.state_shapes`. Each of a layer's tensors is float32 [num_slots,
    *shape], whatever the instance's dtype: a state takes in one token after the other, and so would
    take in as many roundings.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[tuple[int, ...]]],
        num_slots: int,
        device: Device = HOST,
    ) -> None:
        self.num_slots = num_slots
        self._layers = [
            tuple(_memory((num_slots, *shape), torch.float32, device) for shape in shapes)
            for shapes in layers
        ]

    def layer(self, layer: int) -> tuple[Tensor, ...]:
        """The tensors of one layer, in the order of their shapes; none where it has no state."""
        return self._layers[layer]

    @property
    def bytes(self) -> int:
        """Memory of all layers' tensors."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)


class KVCache:
    """Blocks of `block_size` tokens, the same block ids in every layer, and states beside them.

    layers: of each the shapes of a block, `LayerHalf.cache_shapes`: what lies where in it only the
    half knows that computes with it. Each of a layer's tensors is [num_blocks, *shape].
    """

    def __init__(
        self,
        layers: Sequence[Sequence[tuple[int, ...]]],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        states: StateCache | None = None,
        device: Device = HOST,
    ) -> None:
        self.device = device
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.states = states or StateCache([()] * len(layers), 0)
        self._layers = [
            tuple(_memory((num_blocks, *shape), dtype, device) for shape in shapes)
            for shapes in layers
        ]

    def layer(self, layer: int) -> tuple[Tensor, ...]:
        """Of one layer the tensors of blocks, then of states, each in the order of their shapes."""
        return (*self._layers[layer], *self.states.layer(layer))

    @property
    def bytes(self) -> int:
        """Memory of all layers' blocks."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)


def _memory(shape: tuple[int, ...], dtype: torch.dtype, device: Device) -> Tensor:
    """Of a device whatever was there, since nobody reads what no token was written to; of the host
    zeros from numpy, which leaves it to the kernel to zero a page when it is first touched.

    Torch would touch all of a cache that may never fill, which costs its whole size in time and
    memory.
    """
    if not device.is_host:
        return device.empty(shape, dtype)
    pages = np.zeros(prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
