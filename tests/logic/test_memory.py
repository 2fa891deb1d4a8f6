"""Bytes of each part of an instance, from shapes, dtypes and counts alone."""

import pytest

from megainfer.compute.selection import Precision
from megainfer.memory import Ledger, attention_node, expert_node, kv_block_bytes
from megainfer.models.registry import load_spec
from megainfer.models.spec import CACHE_FORMATS, MlaSpec, RopeSpec
from tests.support.checkpoints import write_config

FLOAT = Precision("float32")
NARROW = Precision("bfloat16", "int8", "int8")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """3 layers of 8 experts, 48 x 40; a vocabulary of 160."""
    return load_spec(write_config("mixtral", "gqa", tmp_path_factory.mktemp("model")))


def test_a_ledger_adds_up_line_by_line():
    node = Ledger((("weights", 5), ("KV cache", 2)))
    assert (node * 3).lines == (("weights", 15), ("KV cache", 6))
    both = node + Ledger((("weights", 1), ("slots", 9)))
    assert both.lines == (("weights", 6), ("KV cache", 2), ("slots", 9))
    assert (both.total, both.of("slots"), both.of("states"), Ledger().total) == (17, 9, 0, 0)


def test_an_expert_takes_its_three_matrices(spec):
    weights = 3 * 48 * spec.expert.intermediate
    assert expert_node(spec, FLOAT, 2).lines == (("weights", 2 * 3 * weights * 4),)
    # A byte each, and a float32 scale for every 128.
    assert expert_node(spec, NARROW, 2).total == 2 * 3 * (weights + weights * 4 // 128)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_cache_of_eight_bits_takes_a_byte_a_channel_and_its_scales(spec, name):
    narrow, wide = (Precision("bfloat16", cache=kept) for kept in (name, "float32"))
    attention = spec.layers[0].attention
    keys_and_values = 2 * 3 * attention.num_kv_heads
    assert kv_block_bytes(spec, wide) == 16 * keys_and_values * 4 * attention.head_dim
    assert kv_block_bytes(spec, narrow) == 16 * keys_and_values * (attention.head_dim + 2)
    # Two ranks have a head each, or the same one.
    assert kv_block_bytes(spec, narrow, ranks=2) == kv_block_bytes(spec, narrow)
    node = attention_node(spec, narrow, num_blocks=10, num_states=0)
    assert node.of("KV cache") == 10 * kv_block_bytes(spec, narrow)


def test_latents_of_eight_bits_have_a_scale_of_128_channels_and_one_of_the_key():
    latents = MlaSpec(8, 300, None, 16, 64, 16, RopeSpec(1e4), scale=1.0)
    assert latents.cached_bytes(CACHE_FORMATS["fp8"]) == 300 + 64 + 2 * (3 + 1)
    assert latents.cached_bytes(CACHE_FORMATS["bfloat16"]) == 2 * (300 + 64)


def test_an_attention_node_takes_its_weights_and_its_cache(spec):
    node = attention_node(spec, FLOAT, num_blocks=10, num_states=0)
    assert [what for what, _ in node.lines] == ["weights", "KV cache"]
    assert node.of("KV cache") == 10 * kv_block_bytes(spec, FLOAT)
    assert kv_block_bytes(spec, FLOAT) == 2 * kv_block_bytes(spec, NARROW)
    # The table of embeddings is kept in the dtype of computing, all else as it is asked for.
    table, narrow = 160 * 48, attention_node(spec, NARROW, 0, 0).of("weights")
    others = node.of("weights") // 4 - table
    assert narrow == 2 * table + others + 4 * others // 128
