"""Numbers of rows to look at, and the most rows a second that any of them can give."""

from collections.abc import Callable
from functools import lru_cache
from heapq import heappop, heappush
from math import inf, sqrt

Seconds = Callable[[float], float]


@lru_cache(maxsize=8)
def rows_grid(most: int) -> tuple[int, ...]:
    """Numbers of sequences that are looked at: all to 64, then steps of at most 3 %.

    >>> len(rows_grid(8192)), rows_grid(8192)[62:68]
    (238, (63, 64, 65, 66, 67, 69))
    """
    rows = list[int]()
    at = 1
    while at <= most:
        rows.append(at)
        at = max(at + 1, int(at * 1.03))
    return tuple(rows)


def rate_bound(seconds: Seconds, most: float, tolerance: float) -> float:
    """What no rows / seconds(rows) with 1 <= rows <= most exceeds, at most `tolerance` above what
    one reaches; 0 where not even one row can be. Rows needn't be whole.

    `seconds(rows)` never falls as rows grow, and is infinite from where rows can't be. So no rows
    in (low, high] have a rate above high / seconds(low); such intervals are divided until none can
    hold a much better one. Nothing is taken for granted of the rate itself: with curves of
    efficiency it may have several peaks.
    """
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
