"""The best of a row of logits, found without sorting it.

A threshold is searched for four bits at a time, which reads eight times what it is searched in; so
it is first searched for, roughly, in a sample, the best of each lane of a tile. What the sample
says is a lower bound: all that reach it are listed, some hundreds as a rule, and the true threshold
is searched for among them. Where too many would be listed the whole row is searched: slower, and
with the same result.

`source` is a tuple of where to look: the row, a list of places in it (int32, the program's own),
how many places are listed, 0 where all of the row is meant, and the row's size.
"""

import triton
import triton.language as tl

from megainfer.compute.gpu.sizes import power_of_two

TILE = 4096
"""How many logits of a row are looked at at a time, at most; no list is longer."""
SEARCH_TILE = 512
"""The same where each is compared with sixteen numbers."""
ROUGH = tl.constexpr(4)
"""Steps of four bits that tell enough of a sample's threshold: seven bits behind the exponent."""
EXACT = tl.constexpr(8)


def tiles_of(size: int) -> tuple[int, int]:
    """TILE and SEARCH for rows of this size, whatever their number: what is added in tiles is added
    in the same way in any batch."""
    tile = min(TILE, power_of_two(size))
    return tile, min(SEARCH_TILE, tile)


@triton.jit
def ordered(x):
    """float32 as uint32 in the same order; -0.0 is 0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def value_of(key):
    """The float32 of a key (`ordered`), -inf of one below all."""
    bits = tl.where(key >> 31 != 0, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    value = bits.to(tl.uint32).to(tl.float32, bitcast=True)
    return tl.where(key < 0x007FFFFF, float("-inf"), value)


@triton.jit
def best_first(key, places):
    """int64 that are larger for larger keys and, of those that tie, for the first places."""
    return ((key.to(tl.int64) - 0x80000000) << 32) + (0xFFFFFFFF - places.to(tl.int64))


@triton.jit
def place_of(first):
    """The place of a number that `best_first` made."""
    return 0xFFFFFFFF - (first & 0xFFFFFFFF)


@triton.jit
def lane_bests(row_ptr, size, TILE: tl.constexpr):
    """Of each lane of a tile its largest value, NaN passed over, and where it is."""
    lanes = tl.arange(0, TILE)
    best = tl.full((TILE,), float("-inf"), tl.float32)
    place = lanes
    for start in tl.range(0, size, TILE, num_stages=3):
        places = start + lanes
        x = tl.load(row_ptr + places, mask=places < size, other=float("-inf"))
        better = x > best
        best = tl.where(better, x, best)
        place = tl.where(better, places, place)
    return best, place


@triton.jit
def list_lanes(list_ptr, place, TILE: tl.constexpr):
    """Make the list the places of the lanes' bests, TILE of them, in a row that is longer."""
    tl.debug_barrier()
    tl.store(list_ptr + tl.arange(0, TILE), place)
    tl.debug_barrier()


@triton.jit
def appended(list_ptr, length, places, kept, TILE: tl.constexpr):
    """The list's length with those of a tile's places that are kept, of which any beyond TILE are
    counted only. Whoever reads the list waits (`debug_barrier`)."""
    after = length + tl.cumsum(kept.to(tl.int32), 0)
    tl.store(list_ptr + after - 1, places, mask=kept & (after <= TILE))
    return length + tl.sum(kept.to(tl.int32), 0)


@triton.jit
def number_of(source):
    """How many candidates there are."""
    length, size = source[2], source[3]
    return tl.where(length > 0, length, size)


@triton.jit
def candidates(source, start, TILE: tl.constexpr):
    """A tile of candidates: their places in the row and their values, -inf behind the last."""
    row_ptr, list_ptr, length, size = source
    at = start + tl.arange(0, TILE)
    listed = tl.load(list_ptr + at, mask=at < length, other=0)
    places = tl.where(length > 0, listed, at)
    exist = at < tl.where(length > 0, length, size)
    return places, tl.load(row_ptr + places, mask=exist, other=float("-inf"))


@triton.jit
def borders(found, shift):
    """The sixteen numbers, uint32, that go on with what was found."""
    return found + (tl.arange(0, 16).to(tl.uint32) << shift)


@triton.jit
def narrowed(found, shift, above, wanted):
    """The largest of the sixteen that has `wanted` above it."""
    reached = tl.sum((above >= wanted).to(tl.int32), 0)
    return found + (tl.maximum(reached - 1, 0).to(tl.uint32) << shift)


@triton.jit
def kth_best(source, k, STEPS: tl.constexpr, SEARCH: tl.constexpr):
    """The key (`ordered`) of the k-th largest candidate, or a lower one of which as many bits are
    right as the steps found; below all where there are fewer."""
    found = tl.full((), 0, tl.uint32)
    for step in range(STEPS):
        shift = tl.cast(28 - 4 * step, tl.uint32)
        above = tl.full((16,), 0, tl.int32)
        for start in range(0, number_of(source), SEARCH):
            x = candidates(source, start, SEARCH)[1]
            reach = ordered(x)[:, None] >= borders(found, shift)[None, :]
            above += tl.sum(reach.to(tl.int32), 0)
        found = narrowed(found, shift, above, k)
    return found
