"""What the ranks of an attention node tell each other of."""

from enum import IntEnum


class Work(IntEnum):
    """What an order of rank 0 is about: (work, layer, rows, step's place)."""

    STEP = 0  # read what it is, and keep it at its place
    EMBED = 1
    ATTEND = 2
    DENSE = 3
    SHARED = 4
    LOGITS = 5
