"""Which answers a forward pass takes together."""

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Indices of answers, each once, in passes of at most most_tokens, padding included.

    A pass is as wide as its longest answer, so answers of like length go together, the longest
    first: whoever runs out of memory does at the first pass. An answer longer than most_tokens has
    a pass of its own.

    >>> micro_batches([3, 9, 4, 4], most_tokens=12)
    [[1], [2, 3, 0]]
    """
    passes: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if passes and lengths[passes[-1][0]] * (len(passes[-1]) + 1) <= most_tokens:
            passes[-1].append(index)
        else:
            passes.append([index])
    return passes
