"""Shapes of GLM-5."""

from collections.abc import Mapping

from tests.support.model_variant import Variant
from tests.variants.deepseek_v32 import SMALL

VARIANTS: Mapping[str, Variant] = {
    "seventeen_positions": Variant(
        {**SMALL, "n_group": 1, "index_topk": 17, "index_head_dim": 8, "num_hidden_layers": 2}
    ),
}
