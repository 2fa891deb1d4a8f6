"""What updates show of themselves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from megainfer.rl.ranks.ranks import ALONE, Ranks

Metrics = dict[str, float]


@dataclass(slots=True)
class Seen:
    """What the tokens of an update showed, gathered over its passes. weight: of the pass that is
    added next, 0 for one that another rank adds."""

    tokens: int = 0
    loss: float = 0.0
    others: dict[str, float] = field(default_factory=dict)
    weight: int = 1

    def add(self, tokens: int, loss: Tensor, **means: Tensor) -> None:
        """loss: a share of the update's; means: over these tokens."""
        tokens *= self.weight
        self.tokens += tokens
        self.loss += float(loss.detach()) * self.weight
        for name, mean in means.items():
            self.others[name] = self.others.get(name, 0.0) + float(mean.detach()) * tokens

    def metrics(self, ranks: Ranks = ALONE) -> Metrics:
        """The loss, and means over all tokens of all ranks."""
        tokens, loss, *totals = ranks.total([self.tokens, self.loss, *self.others.values()])
        means = {name: total / tokens for name, total in zip(self.others, totals, strict=True)}
        return {"loss": loss, **means}


def flat(rows: Iterator[Sequence[float]], device: torch.device) -> Tensor:
    """Numbers of rows one after the other, float32 [R]."""
    return torch.tensor(list(chain.from_iterable(rows)), dtype=torch.float32, device=device)


def mean_of(found: Sequence[Metrics]) -> Metrics:
    """Of each metric over updates; of none nothing."""
    names = found[0] if found else ()
    return {name: sum(metrics[name] for metrics in found) / len(found) for name in names}
