"""Metric families, built from numbers when somebody asks for them."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from megainfer.instruments.distribution import Distribution

PREFIX = "megainfer:"

Labels = Sequence[str]
Row = tuple[Labels, float]  # the labels' values, and the metric's


def gauge(name: str, text: str, labels: Labels, rows: Sequence[Row]) -> Metric:
    """`megainfer:<name>`"""
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def counter(name: str, text: str, labels: Labels, rows: Sequence[Row]) -> Metric:
    """`megainfer:<name>_total`"""
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def histogram(
    name: str, text: str, labels: Labels, rows: Sequence[tuple[Labels, Distribution]]
) -> Metric:
    """`megainfer:<name>_bucket`, `_sum` and `_count`"""
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for values, distribution in rows:
        bounds = [*(str(float(bound)) for bound in distribution.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(distribution.counts), strict=True))
        family.add_metric(values, buckets, distribution.total)
    return family


def distribution_of(counters: Mapping[str, Any], name: str) -> Distribution | None:
    """One that a node sent along with its counters; None before it has said anything."""
    sent = counters.get(name)
    if sent is None:
        return None
    distribution = Distribution(sent["bounds"])
    distribution.counts, distribution.total = list(sent["counts"]), sent["total"]
    return distribution
