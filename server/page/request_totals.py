"""What API servers count of requests, added up: the page shows the instance, whichever answers."""

from collections.abc import Iterable, Sequence

import msgspec

from megainfer.instruments.distribution import Distribution
from server.operate.metrics.exposition import Counted


class Histogram(msgspec.Struct, frozen=True):
    """As `Distribution.as_dict` has it."""

    bounds: list[float]
    counts: list[int]
    total: float


class RequestTotals(msgspec.Struct, frozen=True):
    """Since the start, but in_flight: those that are being answered. Times are seconds."""

    in_flight: int
    prompt_tokens: int
    generation_tokens: int
    first_token: Histogram
    between_tokens: Histogram


def own_totals(counted: Counted) -> RequestTotals:
    """Of this API server's requests."""
    engines = counted.requests.engines.values()
    return RequestTotals(
        counted.occupancy.in_flight,
        counted.requests.prompt_tokens,
        counted.requests.generation_tokens,
        _added([_histogram(engine.first_token) for engine in engines]),
        _added([_histogram(engine.between_tokens) for engine in engines]),
    )


def all_totals(own: RequestTotals, others: Iterable[bytes]) -> RequestTotals:
    """With those of the other API servers, as `encode_totals` gives them."""
    parts = [own, *(msgspec.json.decode(other, type=RequestTotals) for other in others)]
    return RequestTotals(
        sum(part.in_flight for part in parts),
        sum(part.prompt_tokens for part in parts),
        sum(part.generation_tokens for part in parts),
        _added([part.first_token for part in parts]),
        _added([part.between_tokens for part in parts]),
    )


def encode_totals(totals: RequestTotals) -> bytes:
    """For another API server."""
    return msgspec.json.encode(totals)


def _histogram(distribution: Distribution) -> Histogram:
    return Histogram([*distribution.bounds], distribution.counts, distribution.total)


def _added(parts: Sequence[Histogram]) -> Histogram:
    """All have the same bounds."""
    counts = [sum(column) for column in zip(*(part.counts for part in parts), strict=True)]
    return Histogram(parts[0].bounds, counts, sum(part.total for part in parts))
