"""What requests change in their logits, as whoever computes takes it."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from megainfer.compute.bitmask import Bitmask


@dataclass(frozen=True, slots=True)
class RowEdits:
    """Changes of one row of logits, which are made in this order; each token is by itself.

    allowed: what it doesn't allow becomes -inf. added: by token, what is added to its logit, -inf
    for one that may not come. held: distinct tokens (int64) that become less likely, and generated
    how often each was generated (float32): a logit above 0 is divided by `repetition` and one below
    multiplied; then `frequency` times the count, and `presence` where that isn't 0, are subtracted.
    `held` and `generated` may grow once they have been read.
    """

    row: int
    allowed: Bitmask | None
    added: Mapping[int, float]
    held: "array[int]"
    generated: "array[float]"
    repetition: float
    frequency: float
    presence: float
