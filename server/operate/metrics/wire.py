"""Metric families on their way from one API server to another."""

from collections.abc import Iterable, Mapping

import msgspec
from prometheus_client.core import Metric

SERVER = "server"
"""The label that tells API servers apart, where there are several."""


class _Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: dict[str, str]
    value: float


class _Family(msgspec.Struct, frozen=True, array_like=True):
    name: str
    text: str
    kind: str
    samples: list[_Sample]


def encode_families(families: Iterable[Metric]) -> bytes:
    return msgspec.msgpack.encode(
        [
            _Family(
                family.name,
                family.documentation,
                family.type,
                [_Sample(s.name, dict(s.labels), s.value) for s in family.samples],
            )
            for family in families
        ]
    )


def decode_families(data: bytes) -> list[Metric]:
    """Raises msgspec.MsgspecError."""
    return [_metric(family) for family in msgspec.msgpack.decode(data, type=list[_Family])]


def merge_families(by_server: Mapping[int, Iterable[Metric]]) -> list[Metric]:
    """Each family once, with the samples of all servers, which a label tells apart. A server that
    starts again counts from zero under its own label, as Prometheus expects of a counter."""
    merged: dict[str, Metric] = {}
    for server, families in sorted(by_server.items()):
        for family in families:
            whole = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, SERVER: str(server)}
                whole.add_sample(sample.name, labels, sample.value)
    return list(merged.values())


def _metric(family: _Family) -> Metric:
    metric = Metric(family.name, family.text, family.kind)
    for sample in family.samples:
        metric.add_sample(sample.name, sample.labels, sample.value)
    return metric
