"""How far logits are from those of an oracle, and a bound on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.checkpoints import DECISIVE_GAP


@dataclass(frozen=True)
class Divergence:
    """Of logits from the oracle's at the same positions of the same sequences.

    error: RMS of the difference over RMS of the oracle's, both without each position's mean, which
    no probability depends on. kl: KL(oracle || ours), nats a position. agreement: the share of
    positions with the same greedy token. overturned: the largest lead that the oracle's best token
    had over its second where ours is another. Positions where the oracle itself is undecided don't
    count in the last two.
    """

    error: float
    kl: float
    agreement: float
    overturned: float

    def __str__(self) -> str:
        return (
            f"error {self.error:.2e}, KL {self.kl:.2e}, greedy agreement {self.agreement:.1%}, "
            f"largest lead overturned {self.overturned:.2f}"
        )

    def is_within(self, bound: "Divergence") -> bool:
        """False for NaN as well."""
        return (
            self.error <= bound.error
            and self.kl <= bound.kl
            and self.agreement >= bound.agreement
            and self.overturned <= bound.overturned
        )


def divergence(actual: Sequence[Tensor], exact: Sequence[Tensor]) -> Divergence:
    """actual, exact: logits of sequences, each float32 [T, V]."""
    # One sequence after the other: tensors as large as all of them cost more than the arithmetic.
    squares, sums, leads = zip(
        *(_compare(ours, theirs) for ours, theirs in zip(actual, exact, strict=True)), strict=True
    )
    error, size = torch.tensor(squares, dtype=torch.float64).sum(0).sqrt().tolist()
    kl, positions, decided = torch.tensor(sums, dtype=torch.float64).sum(0).tolist()
    overturned = torch.cat(leads).tolist()
    return Divergence(
        error=error / size,
        kl=kl / positions,
        agreement=1 - len(overturned) / decided,
        overturned=max(overturned, default=0.0),
    )


def _compare(actual: Tensor, exact: Tensor) -> tuple[tuple[float, ...], tuple[float, ...], Tensor]:
    """Squares of error and oracle; KL, positions and decided ones; the leads overturned."""
    wanted, got = exact.log_softmax(-1), actual.log_softmax(-1)
    best = exact.topk(2).values
    lead = best[:, 0] - best[:, 1]
    decided = lead >= DECISIVE_GAP
    differs = decided & (actual.argmax(-1) != exact.argmax(-1))
    kl = float((wanted.exp() * (wanted - got)).sum())
    return _squares(actual, exact), (kl, len(exact), int(decided.sum())), lead[differs]


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """`Divergence.error` of a float32 [T, V]."""
    error, size = _squares(actual, exact)
    return math.sqrt(error / size)


def _squares(actual: Tensor, exact: Tensor) -> tuple[float, float]:
    """Sums of the squares of the difference and of the oracle's, each position's mean taken out."""
    wanted = _centred(exact)
    return float((_centred(actual) - wanted).square().sum()), float(wanted.square().sum())


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)
