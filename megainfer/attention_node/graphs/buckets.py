"""For which sizes of steps stages are recorded."""

from collections.abc import Sequence
from typing import NamedTuple

from megainfer.compute.batch import ChunkInput

SHORT_CONTEXT = 2048
"""Launches that are bounded by the longest context that there may be waste some time on a short
one, which most are."""


class Bucket(NamedTuple):
    """Decode steps of at most so many rows, each with at most so many tokens of context."""

    rows: int
    context: int


def buckets_of(most_rows: int, max_model_len: int) -> tuple[Bucket, ...]:
    """Ascending by rows, then context. most_rows: of a step in which each sequence has one token.

    >>> [*buckets_of(6, 4096)]  # doctest: +NORMALIZE_WHITESPACE
    [Bucket(rows=1, context=2048), Bucket(rows=1, context=4096), Bucket(rows=2, context=2048),
     Bucket(rows=2, context=4096), Bucket(rows=4, context=2048), Bucket(rows=4, context=4096),
     Bucket(rows=6, context=2048), Bucket(rows=6, context=4096)]
    """
    rows, size = [most_rows], 1
    while size < most_rows:
        rows.append(size)
        size *= 2
    contexts = sorted({min(SHORT_CONTEXT, max_model_len), max_model_len})
    return tuple(Bucket(count, context) for count in sorted(rows) for context in contexts)


def fitting_bucket(buckets: Sequence[Bucket], chunks: Sequence[ChunkInput]) -> Bucket | None:
    """The smallest in which such a step has room; None where there is none, or where some sequence
    has several tokens."""
    if any(len(chunk.token_ids) > 1 for chunk in chunks):
        return None
    context = max(chunk.context for chunk in chunks)
    fit = (b for b in buckets if b.rows >= len(chunks) and b.context >= context)
    return next(fit, None)
