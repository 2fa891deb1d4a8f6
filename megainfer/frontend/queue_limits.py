"""How much may wait, and for how long."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What is taken at most, and for how long; None: without end.

    queued: sequences in flight beyond those that the nodes may run at once. queue_seconds: from a
    sequence's arrival at its node to its first step. total_seconds: from submission to the end.
    """

    queued: int | None = None
    queue_seconds: float | None = None
    total_seconds: float | None = None
