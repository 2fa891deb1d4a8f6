"""Into how many segments a sequence's cached rows are cut, each with a softmax of its own."""

from typing import NamedTuple

from megainfer.compute.gpu.sizes import parts_of

SEGMENT = 512
"""Places of a segment where results may not depend on the step."""
_LEAST_SEGMENT = 256
"""Elsewhere: for fewer a program isn't worth its beginning."""
_PROGRAMS = 512
"""That keep a large GPU busy, a few on each multiprocessor."""
_WORKSPACE = 128 << 20
"""Bytes that segments with programs of their own may take."""


class Segments(NamedTuple):
    """length: in places. programs: how many segments at once get programs of their own; with 1,
    none does."""

    length: int
    programs: int


def segments_of(
    context: int, reach: int, programs: int, segment_bytes: int, invariant: bool
) -> Segments:
    """context: places of the longest sequence. reach: how many of them a program sees at most.
    programs: how many there are anyway. segment_bytes: of what all of them keep of a segment each.
    """
    wanted = max(1, _PROGRAMS // max(1, programs))
    shared_out = parts_of(reach, 64 * wanted) * 64  # whole tiles
    length = SEGMENT if invariant else max(_LEAST_SEGMENT, shared_out)
    # So many may be touched by places in a row that begin anywhere.
    touched = min(parts_of(context, length), parts_of(reach - 1, length) + 1)
    if wanted == 1 or segment_bytes * touched > _WORKSPACE:
        return Segments(length, 1)
    return Segments(length, touched)
