"""How much must be read before a processor's caches have forgotten what was read before."""

from collections.abc import Sequence
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
LEAST_WORKING = 128 * 2**20
"""Bytes of a working set where nothing is known of caches, or they are small."""
MOST_WORKING = 2**30
"""Larger ones would take more memory than what they tell is worth."""
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def working_set(caches: Path = CACHES) -> int:
    """Bytes: twice the largest cache, since one that is read round and round in the size of a cache
    is still found there in part."""
    sizes = [_bytes(file) for file in caches.glob("index*/size")]
    return min(MOST_WORKING, max([LEAST_WORKING, *(2 * size for size in sizes)]))


def _bytes(file: Path) -> int:
    """Of a file such as `266240K`; 0 where it can't be read."""
    try:
        text = file.read_text().strip()
        return int(text[:-1]) * UNITS[text[-1]] if text[-1:] in UNITS else int(text or 0)
    except (OSError, ValueError):
        return 0


def places(needs: Sequence[int], total: int, turns: int) -> list[list[int]]:
    """Where each case begins at each of its turns, of memory that has so many blocks.

    needs: blocks of each case. They take turns, and each goes on where the one before has read, so
    that none finds what another has just brought into a cache.

    >>> places([3, 5], total=24, turns=4)
    [[0, 8, 16, 0], [3, 11, 19, 3]]
    """
    found: list[list[int]] = [[] for _ in needs]
    at = 0
    for _ in range(turns):
        for own, blocks in zip(found, needs, strict=True):
            at = at if at + blocks <= total else 0
            own.append(at)
            at += blocks
    return found
