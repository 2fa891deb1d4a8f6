"""A step's tensors, and the cache that they point into."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.kv_cache import KVCache
from megainfer.models.names import TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    NormSpec,
    RopeSpec,
    RouterSpec,
)


def test_decodes_come_first_and_samples_keep_the_order_of_chunks():
    batch = build_batch(
        [
            ChunkInput([10, 11, 12], 3, [5, 2], samples=True),
            ChunkInput([20], 4, [7, 1], samples=True),
            ChunkInput([30, 31], 0, [3], samples=False),
            ChunkInput([40], 0, [6], samples=True),
        ],
        block_size=4,
    )
    assert batch.token_ids.tolist() == [20, 40, 10, 11, 12, 30, 31]
    assert batch.positions.tolist() == [4, 0, 3, 4, 5, 0, 1]
    assert batch.kept_at.tolist() == [4, 24, 23, 8, 9, 12, 13]
    assert batch.sample_rows.tolist() == [4, 0, 1]
    assert batch.decodes is not None
    assert batch.decodes.block_table.tolist() == [[7, 1], [6, 6]]
    assert batch.decodes.mask.squeeze().tolist() == [[True] * 5, [True] + [False] * 4]
    assert [(p.start, p.stop, p.blocks.tolist(), p.context) for p in batch.prefills] == [
        (2, 5, [5, 2], 6),
        (5, 7, [3], 2),
    ]


def test_blocks_beyond_the_context_are_left_alone():
    batch = build_batch(
        [ChunkInput([1], 2, [4, 9, 8], True), ChunkInput([1, 2], 0, [5, 6], True)], block_size=4
    )
    assert batch.decodes is not None
    assert batch.decodes.block_table.tolist() == [[4]]
    assert batch.prefills[0].blocks.tolist() == [5]


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 9), st.booleans()), min_size=1, max_size=5
    )
)
def test_every_token_has_its_own_row_position_and_slot(shapes):
    chunks = [
        ChunkInput([100 * i + t for t in range(length)], start, [6 * i + b for b in range(6)], want)
        for i, (length, start, want) in enumerate(shapes)
    ]
    batch = build_batch(chunks, block_size=3)
    assert len(set(batch.kept_at.tolist())) == batch.num_tokens == sum(s[0] for s in shapes)
    for token, position, slot in zip(
        batch.token_ids.tolist(), batch.positions.tolist(), batch.kept_at.tolist(), strict=True
    ):
        sequence, index = divmod(token, 100)
        assert position == chunks[sequence].start + index
        assert slot == (6 * sequence) * 3 + position
    last_tokens = [chunk.token_ids[-1] for chunk in chunks if chunk.samples]
    assert batch.token_ids[batch.sample_rows].tolist() == last_tokens


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_cache_takes_what_the_spec_says(dtype, size):
    attention = AttentionSpec(4, 2, 8, RopeSpec(1e4))
    layer = LayerSpec(attention, MoESpec(RouterSpec(4, 2, True, True), ExpertSpec(16)))
    spec = ModelSpec(
        "X", 32, 64, (layer,) * 3, NormSpec(1e-5), False, 64, "float32", (), TensorNames()
    )
    shapes = [tuple((16, *shape) for shape in attention.cache_shapes)] * 3
    kv = KVCache(shapes, num_blocks=5, block_size=16, dtype=dtype)
    assert [tensor.shape for tensor in kv.layer(2)] == [(5, 16, 2, 8)] * 2
    assert kv.bytes == 5 * 16 * spec.kv_bytes_per_token(size) == 5 * 16 * 3 * 2 * 16 * size
