"""Caches of more numbers than 32 bits can count: what lies behind is found, and kept, as ever.

Their memory is the kernel's promise: only what is written to is there.
"""

from collections.abc import Mapping
from math import prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import pytest
import torch
from torch import Tensor

from megainfer.compute import kv_cache
from megainfer.compute.batch import ChunkInput
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.config import BLOCK_SIZE
from megainfer.device import Device
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import BLOCKS_A_SEQUENCE, SEQUENCES, Pair, blocks_of, open_pair

_NORESERVE = 0x4000  # of Linux: memory that is only promised isn't counted
LIMIT = 2**31
TWO_LAYERS = {"num_hidden_layers": 2}
FAMILIES: Mapping[tuple[str, str], dict[str, Any]] = {
    ("qwen3_moe", "gqa"): TWO_LAYERS,  # keys and values of heads
    ("deepseek_v32", "nine_positions"): TWO_LAYERS,  # latents, and an indexer's keys
    ("qwen3_next", "odd_dense_last"): {},  # recurrent states
}
BLOCKS = SEQUENCES * BLOCKS_A_SEQUENCE
TOKENS = list(range(3, 18))
STEPS = ((0, 14), (14, 15))  # a prompt and a token, from one position to another


def promised(shape: tuple[int, ...], dtype: torch.dtype, device: Device) -> Tensor:
    """As `kv_cache._memory`, of which the first LIMIT numbers are left out: a number that has
    overflowed finds zeros in there."""
    size = (LIMIT + prod(shape)) * dtype.itemsize
    pages = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS | _NORESERVE)
    return torch.frombuffer(pages, dtype=dtype)[LIMIT:].view(shape)


def logits_of(pair: Pair, blocks: int, slot: int) -> Tensor:
    """Of a sequence that has blocks from there on, and this slot for its state."""
    own = [blocks + block for block in blocks_of(1)]
    steps = [ChunkInput(TOKENS[begin:end], begin, own, True, slot) for begin, end in STEPS]
    return torch.cat([pair.step([chunk]) for chunk in steps])


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_it_makes_no_difference_how_far_behind_a_sequence_lies(tmp_path, monkeypatch, family):
    folder = write_checkpoint(*family, tmp_path, **FAMILIES[family])
    near, far = (open_pair(folder, 1, GpuBackend(*[torch.float32] * 2)) for _ in range(2))
    expected = logits_of(near, 0, 0)
    model = far.attention
    layers = [layer.cache_shapes(BLOCK_SIZE, torch.float32) for layer in model.half.layers]
    states = [layer.state_shapes for layer in model.half.layers]
    blocks, slots = (
        -(-LIMIT // min((prod(shape) for own in shapes for shape in own), default=LIMIT))
        for shapes in (layers, states)
    )
    monkeypatch.setattr(kv_cache, "_memory", promised)
    far.kv = model.new_cache(blocks + BLOCKS, slots + SEQUENCES)
    assert torch.equal(logits_of(far, blocks, slots), expected)
    for layer in range(len(model.half.layers)):
        for kept, ours in zip(near.kv._layers[layer], far.kv._layers[layer], strict=True):
            assert torch.equal(ours[blocks:], kept)
        for kept, ours in zip(near.kv.states.layer(layer), far.kv.states.layer(layer), strict=True):
            assert torch.equal(ours[slots:], kept)
