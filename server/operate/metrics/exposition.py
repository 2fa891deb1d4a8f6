"""Everything that is counted, as Prometheus reads it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from megainfer.frontend.engine_client import EngineClient
from megainfer.messages.message import Role
from server.http.occupancy import Occupancy
from server.operate.metrics.engines import engine_families, request_families
from server.operate.metrics.experts import ExpertMap
from server.operate.metrics.families import counter, gauge
from server.operate.metrics.nodes import node_families
from server.operate.metrics.recovery import instance_families, recovery_families
from server.operate.metrics.requests import RequestMetrics
from server.operate.metrics.terms import Expectation, term_families
from server.operate.metrics.wire import decode_families, encode_families, merge_families
from server.operate.nodes import NodeBoard
from server.operate.siblings import Address, Siblings

METRICS = "metrics"
"""What another API server is asked for."""


@dataclass
class Counted:
    """All sources of metrics. statuses: answers by (method, status). startup: seconds of each
    stage of the start, once it is over. expectation: what the plan's terms are expected to be."""

    model: str
    engine: EngineClient
    requests: RequestMetrics
    board: NodeBoard
    occupancy: Occupancy
    experts: ExpertMap
    cache_config: Mapping[str, str]
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    startup: dict[str, float] = field(default_factory=dict)
    expectation: Expectation = field(default_factory=Expectation)


class Exposition:
    """A registry of its own, read when it is asked for.

    siblings: the instance's API servers; where there are several, what each counts of its requests
    has a label with its number, and any of them tells of all.
    """

    def __init__(self, counted: Counted, siblings: Address) -> None:
        self._counted = counted
        self._address = siblings
        answers = {METRICS: lambda: encode_families(front_end_families(counted))}
        self.siblings = Siblings(siblings, answers)

    @property
    def number(self) -> int:
        """Of this API server."""
        return self._address.own

    async def render(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) in the format that the client's Accept header asks for."""
        told = await self.siblings.ask(METRICS)
        encode, content_type = choose_encoder(accept)
        registry = CollectorRegistry()
        registry.register(_Families([*instance_wide(self._counted), *self._of_servers(told)]))
        return encode(registry), content_type

    def _of_servers(self, told: Mapping[int, bytes]) -> list[Metric]:
        own = list(front_end_families(self._counted))
        if self._address.count == 1:
            return own
        others = {server: decode_families(data) for server, data in told.items()}
        return merge_families({self._address.own: own, **others})


class _Families(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterator[Metric]:
        """Nothing: the names are checked by tests, not by the registry."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def instance_wide(own: Counted) -> Iterator[Metric]:
    """What any API server knows as well as another: of nodes."""
    attention = own.board.of_role(Role.ATTENTION)
    yield from engine_families(own.model, attention, own.cache_config)
    yield from node_families(own.model, own.board, own.experts)
    yield from term_families(own.model, own.board, own.expectation)
    yield from instance_families(own.model, own.engine)
    text = "Seconds that each stage of the start took."
    stages = [((own.model, stage), seconds) for stage, seconds in own.startup.items()]
    yield gauge("startup_seconds", text, ("model_name", "stage"), stages)


def front_end_families(own: Counted) -> Iterator[Metric]:
    """What this API server alone knows: of its requests, and of its process."""
    labels = ("model_name",)
    yield from request_families(own.model, own.requests.engines)
    yield from recovery_families(own.model, own.engine)
    text = "Requests for work that are being answered."
    yield gauge("server_load", text, labels, [((own.model,), float(own.occupancy.in_flight))])
    text = "1 while the server finishes what it has begun and takes nothing new, else 0."
    yield gauge("draining", text, labels, [((own.model,), float(own.occupancy.draining))])
    yield counter(
        "http_responses",
        "Answers by method and status.",
        ("method", "status"),
        [((method, str(status)), n) for (method, status), n in own.statuses.items()],
    )
    yield from ProcessCollector(registry=None).collect()
