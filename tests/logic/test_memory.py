"""Bytes of each part of an instance, from shapes, dtypes and counts alone."""

import pytest

from megainfer.compute.selection import Precision
from megainfer.memory import Ledger, attention_node, expert_node, kv_block_bytes
from megainfer.models.registry import load_spec
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


def test_an_attention_node_takes_its_weights_and_its_cache(spec):
    node = attention_node(spec, FLOAT, num_blocks=10, num_states=0)
    assert [what for what, _ in node.lines] == ["weights", "KV cache"]
    assert node.of("KV cache") == 10 * kv_block_bytes(spec, FLOAT)
    assert kv_block_bytes(spec, FLOAT) == 2 * kv_block_bytes(spec, NARROW)
    # The table of embeddings is kept in the dtype of computing, all else as it is asked for.
    table, narrow = 160 * 48, attention_node(spec, NARROW, 0, 0).of("weights")
    others = node.of("weights") // 4 - table
    assert narrow == 2 * table + others + 4 * others // 128
