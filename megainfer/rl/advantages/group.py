"""GRPO's advantages: an answer's reward among those of other answers to the same problem.

Source: GRPO (DeepSeekMath, arXiv 2402.03300), outcome supervision:
A = (r - mean of the group) / deviation of the group, the same for every token of the answer.
"""

import math
from collections.abc import Sequence

SMALLEST_DEVIATION = 1e-6


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """One number an answer, from the rewards of all answers to one problem.

    A group with equal rewards teaches nothing: all are 0, as is a single answer's.

    >>> group_advantages([1.0, 1.0, 1.0]), [round(a, 3) for a in group_advantages([0.0, 1.0])]
    ([0.0, 0.0, 0.0], [-1.0, 1.0])
    """
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [(reward - mean) / (deviation + SMALLEST_DEVIATION) for reward in rewards]
