"""The plan's terms, as the live view is told: measured lately, beside what was expected."""

from typing import Any

from server.operate.metrics.exposition import Counted
from server.operate.metrics.terms import compare


def terms_view(counted: Counted) -> list[dict[str, Any]]:
    """Of the latest second: [] while nothing is generated. expected: None where nothing is."""
    found = compare(counted.board, counted.expectation)
    if found is None:
        return []
    return [
        {"term": term, "measured": seconds, "expected": expected}
        for term, seconds, expected in found.rows
    ]
