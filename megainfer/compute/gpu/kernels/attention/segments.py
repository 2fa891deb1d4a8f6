"""Into how many segments a sequence's cached rows are cut, each with a softmax of its own."""

from functools import lru_cache
from typing import NamedTuple

from megainfer.compute.gpu.sizes import parts_of

SEGMENT = 512
"""Places of a segment where results may not depend on the step."""
_LEAST_SEGMENT = 256
"""Elsewhere: for fewer a program isn't worth its beginning."""
_TILE = 64
"""Places, of which a segment has a multiple elsewhere: whole tiles."""
_BUSY_SHARE = 0.85
"""Of a device's room for programs, in use on average until the last of equal ones ends."""
_WORKSPACE = 128 << 20
"""Bytes that segments with programs of their own may take."""


class Segments(NamedTuple):
    """length: in places. programs: how many segments at once get programs of their own; with 1,
    none does."""

    length: int
    programs: int


class Programs(NamedTuple):
    """anyway: how many there are, whatever is cut. at_once: how many the device has room for.
    segment_bytes: of what all of them keep of a segment each."""

    anyway: int
    at_once: int
    segment_bytes: int


def segments_of(context: int, reach: int, programs: Programs, invariant: bool) -> Segments:
    """context: places of the longest sequence. reach: how many of them a program sees at most."""
    parts = _parts(programs.anyway, programs.at_once, parts_of(reach, _LEAST_SEGMENT))
    shared_out = parts_of(reach, _TILE * parts) * _TILE
    length = SEGMENT if invariant else max(_LEAST_SEGMENT, shared_out)
    # So many may be touched by places in a row that begin anywhere.
    touched = min(parts_of(context, length), parts_of(reach - 1, length) + 1)
    if parts == 1 or programs.segment_bytes * touched > _WORKSPACE:
        return Segments(length, 1)
    return Segments(length, touched)


@lru_cache(256)
def _parts(programs: int, at_once: int, most: int) -> int:
    """Into how many equal parts each of them is cut, as few as keep the device busy to the end.

    Programs run in waves, of which the last one may be of a few alone.

    >>> _parts(256, 3 * 132, 32), _parts(512, 3 * 132, 32), _parts(4, 3 * 132, 32)
    (3, 2, 32)
    """
    best, best_share = 1, 0.0
    for parts in range(1, most + 1):
        count = parts * max(1, programs)
        share = count / (parts_of(count, at_once) * at_once)
        if share > best_share:
            best, best_share = parts, share
        if share >= _BUSY_SHARE:
            break
    return best
