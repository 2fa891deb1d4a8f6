"""A step's updates of the value model, and what it says of answers."""

from collections.abc import Sequence
from itertools import accumulate, islice, pairwise

import torch
from torch import Tensor

from megainfer.rl.losses.value import value_loss
from megainfer.rl.samples.rows import Row, ValueRow
from megainfer.rl.training.metrics import Metrics, Seen, flat, mean_of
from megainfer.rl.training.models import ValueModel
from megainfer.rl.training.optimiser import Optimiser
from megainfer.rl.training.passes import Passes


class ValueUpdate:
    """Trains the value model on finished answers.

    low, high: of `value_loss`.
    """

    def __init__(
        self,
        value: ValueModel,
        optimiser: Optimiser,
        passes: Passes,
        low: float = 0.5,
        high: float = 0.6,
    ) -> None:
        self._value = value
        self._optimiser = optimiser
        self._passes = passes
        self._low, self._high = low, high

    def __call__(self, rows: Sequence[ValueRow]) -> Metrics:
        """Of each metric the mean over updates."""
        return mean_of(
            [self._update(batch) for batch in self._passes.split(rows, self._optimiser.updates)]
        )

    @torch.no_grad()
    def predict(self, rows: Sequence[Row]) -> list[list[float]]:
        """V(s_t) of each row's span, in the order of the rows."""
        starts = [0, *accumulate(len(row.span) for row in rows)]
        found = [0.0] * starts[-1]
        for chosen, weight in self._passes.passes(rows):
            part = [rows[i] for i in chosen]
            with self._passes.computing(self._value.head.weight.device):
                values = self._value.values(part)
            left = iter(values.tolist())
            for index in chosen if weight else ():
                own = slice(starts[index], starts[index + 1])
                found[own] = islice(left, own.stop - own.start)
        whole = self._passes.ranks.total(found)  # what is another rank's is 0 here
        return [whole[start:stop] for start, stop in pairwise(starts)]

    def _update(self, rows: Sequence[ValueRow]) -> Metrics:
        tokens = sum(len(row.span) for row in rows)
        seen = Seen()
        for chosen, seen.weight in self._passes.passes(rows):
            part = [rows[i] for i in chosen]
            with self._passes.computing(self._value.head.weight.device):
                values = self._value.values(part)
            loss = self.loss(part, values, tokens, seen) * seen.weight
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
        return {**seen.metrics(self._passes.ranks), "gradient_norm": self._optimiser.step()}

    def loss(self, rows: Sequence[ValueRow], values: Tensor, tokens: int, seen: Seen) -> Tensor:
        """These rows' share of an update's loss, whose mean is over all its `tokens`."""
        old = flat((row.old_values for row in rows), values.device)
        returns = flat((row.returns for row in rows), values.device)
        each = value_loss(values, old, returns, low=self._low, high=self._high)
        loss = each.sum() / tokens
        error = (values - returns).detach()
        seen.add(len(old), loss, value=values.mean(), squared_error=(error**2).mean())
        return loss
