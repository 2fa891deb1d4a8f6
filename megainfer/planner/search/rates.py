"""The most of something that is done in a second, where more takes longer: exact, and as a bound.

`seconds(rows)` never falls as rows grow, and is infinite from where rows can't be. That alone says
that no number of rows in (low, high] has a rate above high / seconds(low); dividing such intervals
until none can hold a better rate finds the best one. Nothing is taken for granted of the rate
itself: with curves of efficiency it may have several peaks.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf, sqrt

Seconds = Callable[[float], float]


def rows_grid(most: int) -> tuple[int, ...]:
    """Numbers of sequences that are looked at: all to 64, then steps of at most 3 %.

    >>> len(rows_grid(8192)), rows_grid(8192)[62:68]
    (232, (63, 64, 65, 66, 67, 69))
    """
    rows = list[int]()
    at = 1
    while at <= most:
        rows.append(at)
        at = max(at + 1, int(at * 1.03))
    return tuple(rows)


def best_rows(seconds: Callable[[int], float], grid: Sequence[int], floor: float) -> int | None:
    """Of the grid, the rows with the highest rows / seconds(rows), the fewest of equals; None where
    none has more than `floor`. grid: increasing."""
    known = dict[int, float]()

    def at(index: int) -> float:
        if index not in known:
            known[index] = seconds(grid[index])
        return known[index]

    best, best_index = floor, None

    def consider(index: int) -> None:
        nonlocal best, best_index
        rate = grid[index] / at(index)
        if rate > best or (rate == best and best_index is not None and index < best_index):
            best, best_index = rate, index

    if not grid or at(0) == inf:
        return None
    last = len(grid) - 1
    consider(0)
    consider(last)
    heap = [(-grid[last] / at(0), 0, last)]
    while heap:
        bound, low, high = heappop(heap)
        if -bound <= best:
            break
        # Nothing between: both ends are known. And behind an end that can't be, nothing can.
        if high - low < 2:
            continue
        middle = (low + high) // 2
        consider(middle)
        for start, end in ((low, middle), (middle, high)):
            if at(start) < inf and end - start >= 2:
                heappush(heap, (-grid[end - 1] / at(start), start, end))
    return None if best_index is None else grid[best_index]


def rate_bound(seconds: Seconds, most: float, tolerance: float = 0.01) -> float:
    """What no rows / seconds(rows) with 1 <= rows <= most exceeds; 0 where not even one row can be.
    At most `tolerance` above a rate that is reached, where rows needn't be whole."""
    if most < 1 or seconds(1.0) == inf:
        return 0.0
    best = 1 / seconds(1.0)
    heap = list[tuple[float, float, float, float]]()  # (-bound, low, high, seconds(low))
    low = 1.0
    while low < most and (took := seconds(low)) < inf:
        best = max(best, low / took)
        high = min(low * 8, most)
        heappush(heap, (-high / took, low, high, took))
        low = high
    if low == most and (took := seconds(most)) < inf:
        best = max(best, most / took)
    while heap and -heap[0][0] > best * (1 + tolerance):
        _, low, high, took = heappop(heap)
        middle = sqrt(low * high)
        heappush(heap, (-middle / took, low, middle, took))
        if (longer := seconds(middle)) < inf:
            best = max(best, middle / longer)
            heappush(heap, (-high / longer, middle, high, longer))
    return max(best, -heap[0][0] if heap else 0.0)
