"""What updates show of themselves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

Metrics = dict[str, float]


@dataclass(slots=True)
class Seen:
    """What the tokens of an update showed, gathered over its passes."""

    tokens: int = 0
    loss: float = 0.0
    others: dict[str, float] = field(default_factory=dict)

    def add(self, tokens: int, loss: Tensor, **means: Tensor) -> None:
        """loss: a share of the update's; means: over these tokens."""
        self.tokens += tokens
        self.loss += float(loss.detach())
        for name, mean in means.items():
            self.others[name] = self.others.get(name, 0.0) + float(mean.detach()) * tokens

    def metrics(self) -> Metrics:
        """The loss, and means over all tokens."""
        means = {name: total / self.tokens for name, total in self.others.items()}
        return {"loss": self.loss, **means}


def flat(rows: Iterator[Sequence[float]], device: torch.device) -> Tensor:
    """Numbers of rows one after the other, float32 [R]."""
    return torch.tensor(list(chain.from_iterable(rows)), dtype=torch.float32, device=device)


def mean_of(found: Sequence[Metrics]) -> Metrics:
    """Of each metric over updates; of none nothing."""
    names = found[0] if found else ()
    return {name: sum(metrics[name] for metrics in found) / len(found) for name in names}
