"""Everything that is counted, as Prometheus reads it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from megainfer.frontend.engine_client import EngineClient
from megainfer.messages import Role
from server.http.occupancy import Occupancy
from server.operate.metrics.engines import engine_families
from server.operate.metrics.families import counter, gauge
from server.operate.metrics.nodes import ExpertMap, node_families
from server.operate.metrics.recovery import instance_families, recovery_families
from server.operate.metrics.requests import RequestMetrics
from server.operate.nodes import NodeBoard


@dataclass
class Counted:
    """All sources of metrics. statuses: answers by (method, status). startup: seconds of each
    stage of the start, once it is over."""

    model: str
    engine: EngineClient
    requests: RequestMetrics
    board: NodeBoard
    occupancy: Occupancy
    experts: ExpertMap
    cache_config: Mapping[str, str]
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    startup: dict[str, float] = field(default_factory=dict)


class Exposition:
    """A registry of its own, read when it is asked for."""

    def __init__(self, counted: Counted) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Families(counted))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) in the format that the client's Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Families(Collector):
    def __init__(self, counted: Counted) -> None:
        self._counted = counted

    def describe(self) -> Iterator[Metric]:
        """Nothing: the names are checked by tests, not by the registry."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        own = self._counted
        attention = own.board.of_role(Role.ATTENTION)
        yield from engine_families(own.model, own.requests.engines, attention, own.cache_config)
        yield from node_families(own.model, own.board, own.experts)
        yield from instance_families(own.model, own.engine)
        yield from recovery_families(own.model, own.engine)
        labels = ("model_name",)
        text = "Requests for work that are being answered."
        yield gauge("server_load", text, labels, [((own.model,), float(own.occupancy.in_flight))])
        text = "1 while the server finishes what it has begun and takes nothing new, else 0."
        yield gauge("draining", text, labels, [((own.model,), float(own.occupancy.draining))])
        text = "Seconds that each stage of the start took."
        stages = [((own.model, stage), seconds) for stage, seconds in own.startup.items()]
        yield gauge("startup_seconds", text, ("model_name", "stage"), stages)
        yield counter(
            "http_responses",
            "Answers by method and status.",
            ("method", "status"),
            [((method, str(status)), n) for (method, status), n in own.statuses.items()],
        )
