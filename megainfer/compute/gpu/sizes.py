"""Sizes of grids and tiles, found on the host.

Triton has the same functions for both sides; on the host they take ten times as long, and there are
several in each launch.
"""


def parts_of(size: int, part: int) -> int:
    """How many parts of so many there are, the last one maybe smaller."""
    return -(-size // part)


def power_of_two(size: int) -> int:
    """The smallest that isn't smaller; 0 of nothing."""
    return 1 << (size - 1).bit_length() if size else 0
