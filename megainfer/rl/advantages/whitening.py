"""Advantages of a step brought to mean 0 and deviation 1, and bounded.

Source: T-PPO (arXiv 2506.15050), whose authors whiten advantages and clamp them to +-10; whitening
as in PPO's usual implementations (Huang et al., "The 37 implementation details of PPO", 2022).
"""

import math
from collections.abc import Sequence

SMALLEST_DEVIATION = 1e-8
"""Added to the deviation, so that equal advantages become 0 and not a division by it."""


def whitened(rows: Sequence[Sequence[float]], clamp: float) -> list[list[float]]:
    """Of all tokens of all rows together: mean 0, population deviation 1, within +-clamp.

    Give the tokens that are trained and no others: each counts in the mean.
    """
    values = [value for row in rows for value in row]
    if not values:
        return [[] for _ in rows]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    scale = math.sqrt(variance) + SMALLEST_DEVIATION
    return [[max(-clamp, min(clamp, (value - mean) / scale)) for value in row] for row in rows]
