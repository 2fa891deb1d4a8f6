"""What a row whose logits are wanted costs."""

from pathlib import Path

import pytest

from megainfer.attention_node.row_costs import SCAN, scored_row_cost
from megainfer.compute.selection import Precision
from tests.support.public_models import public_spec


def test_it_costs_a_product_with_the_vocabulary_beside_those_of_the_layers(tmp_path: Path) -> None:
    spec = public_spec("mixtral-8x22b", tmp_path)
    hidden, vocabulary, keys = 6144, 32000, 8 * 128
    attention = 2 * hidden * hidden + 2 * hidden * keys
    experts = 8 * hidden + 2 * 3 * hidden * 16384  # the gate, and two experts
    expected = 1 + (hidden + SCAN) * vocabulary / (56 * (attention + experts))
    assert scored_row_cost(spec, Precision("bfloat16")) == pytest.approx(expected)
