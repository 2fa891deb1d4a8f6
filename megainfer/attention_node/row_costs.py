"""What rows of a step cost beside each other."""

from megainfer.compute.selection import Precision
from megainfer.models.spec import ModelSpec
from megainfer.planner.costs.model import ModelCosts

SCAN = 256
"""Multiplications in whose time a logit is normalised, sorted and compared: measured on CPUs, where
rows of 8,192 took half as long for this as for a product with a hidden state of 512."""


def scored_row_cost(spec: ModelSpec, precision: Precision) -> float:
    """Of a row of a prompt whose logits are wanted, in rows that only go through the layers."""
    costs = ModelCosts.of(spec, precision)
    layers = sum(layer.count * layer.product_flops(1) for layer in costs.layers)
    layers += costs.moe_layers * costs.expert_flops(1)
    return 1 + (costs.head_flops(1) + 2 * SCAN * spec.vocab_size) / layers
