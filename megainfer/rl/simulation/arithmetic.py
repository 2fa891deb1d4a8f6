"""FLOPs of training, by the planner's counts of a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from megainfer.planner.costs import ModelCosts
from megainfer.planner.costs.attend import cache_work
from megainfer.planner.costs.step import Contexts, Step

FORWARD, TRAINED = 1, 3
"""Passes that a row is worth: a backward pass takes twice the products of a forward one."""
FINENESS = 256
"""Tokens to which texts are rounded up."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What a forward pass over whole texts takes; the output layer isn't counted, which a policy
    has for the trained tokens and a value model not at all."""

    model: ModelCosts
    _flops: dict[int, float] = field(default_factory=dict, repr=False)

    def forward_flops(self, tokens: int) -> float:
        """Of one text of so many tokens."""
        rounded = max(1, -(-tokens // FINENESS)) * FINENESS
        if rounded not in self._flops:
            self._flops[rounded] = self._counted(rounded)
        return self._flops[rounded] * tokens / rounded

    def head_flops(self, tokens: int) -> float:
        """Of the output layer."""
        return self.model.head_flops(tokens)

    def texts_flops(self, lengths: Sequence[int]) -> float:
        """A forward pass over texts of these lengths."""
        return sum(map(self.forward_flops, lengths))

    def _counted(self, tokens: int) -> float:
        model = self.model
        step = Step(0.0, Contexts.at(1), float(tokens), Contexts(1, tokens), float(tokens))
        attended = sum(
            own.count
            * (
                own.product_flops(tokens)
                + cache_work(own.layer.attention, step, model.cache_format).flops
            )
            for own in model.layers
        )
        return attended + model.moe_layers * model.expert_flops(tokens)
