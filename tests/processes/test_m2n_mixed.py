"""Two roads in one instance: whom each leads to, and that sums don't depend on it. Between CPUs,
and between GPUs that are pretended (tests/support/gpu_hosts.py)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from threading import Event

import pytest
import torch

from megainfer.device import Device
from megainfer.errors import ProtocolError
from megainfer.m2n import roads
from megainfer.m2n.dist import site
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Dispatch
from megainfer.m2n.mixed.attention_port import MixedAttentionPort
from megainfer.m2n.mixed.expert_port import MixedExpertPort
from megainfer.m2n.mixed.ports import join_attention, join_expert
from megainfer.m2n.reference import make_parts, moe
from megainfer.m2n.roads import Road, Seat
from tests.support import gpu_hosts
from tests.support.chaos.gpus import PretendedGpu
from tests.support.m2n_cluster import (
    SECONDS,
    affine_expert,
    arrivals_of,
    random_routing,
    road_of,
    serve_all,
    spread,
)

GEOMETRY = Geometry(2, 4, 1, capacity=64, hidden_size=32, top_k=3, dtype="float32")
HOMES = spread(8, GEOMETRY.num_expert)
FAR: Mapping[int, Sequence[int]] = {0: (1, 2), 1: (0, 3)}
"""By attention node, the expert nodes that it meets as if they were on another host."""


@pytest.fixture(params=["gloo", "nccl"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Road:
    if request.param == "nccl":
        monkeypatch.setitem(roads.ROADS, "ipc", gpu_hosts.__name__)
        monkeypatch.setattr(site, "groups_for", gpu_hosts.groups_for)
    return replace(road_of("mixed"), groups=request.param)


def device_of(road: Road) -> Device | None:
    return PretendedGpu() if road.groups == "nccl" else None


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def attention_of(
    road: Road, opened: ExitStack, index: int, incarnation: int = 0
) -> MixedAttentionPort:
    port = join_attention(road, Seat(GEOMETRY, index, incarnation=incarnation), device_of(road))
    opened.callback(port.close)
    return port


def experts_of(road: Road, opened: ExitStack) -> list[MixedExpertPort]:
    seats = [Seat(GEOMETRY, index) for index in range(GEOMETRY.num_expert)]
    ports = [join_expert(road, seat, device_of(road)) for seat in seats]
    for port in ports:
        opened.callback(port.close)
    return ports


def meet(
    attention: MixedAttentionPort, experts: Sequence[MixedExpertPort], far: Sequence[int]
) -> None:
    for index, expert in enumerate(experts):
        met = Event()
        address = expert.address if index in far else None
        attention.meet(index, 0, SECONDS, met.set, address)
        assert met.wait(SECONDS)


def test_sums_are_those_of_one_road(road: Road, opened: ExitStack) -> None:
    """In the order of expert nodes, to the last bit, though roads take turns in it."""
    experts = experts_of(road, opened)
    attention = [attention_of(road, opened, index) for index in FAR]
    for index, port in enumerate(attention):
        meet(port, experts, FAR[index])
        port.set_epoch(1)
    for port in experts:
        port.set_epoch(1)
    expert, generator = affine_expert(HOMES), torch.Generator().manual_seed(0)
    for layer in range(3):
        for port in attention:
            hidden = torch.randn(17, GEOMETRY.hidden_size, generator=generator)
            routing = random_routing(17, GEOMETRY.top_k, HOMES, generator)
            handle = port.dispatch(0, layer, hidden, make_parts(routing, GEOMETRY.num_expert))
            with pytest.raises(ProtocolError, match="cannot be combined: expert nodes"):
                port.combine(handle, torch.zeros_like(hidden))
            for node, at in enumerate(experts):
                seen: list[Dispatch] = []
                while not seen:
                    at.wait(SECONDS)
                    seen = serve_all(at, node, expert)
            arrivals_of(port, handle)
            out = torch.zeros_like(hidden)
            port.combine(handle, out)
            assert torch.equal(out, moe(hidden, routing, GEOMETRY.num_expert, expert))
            with pytest.raises(ProtocolError, match="is not in flight"):
                port.combine(handle, out)
    counted = attention[0].counters()
    assert counted["messages_sent"] == 3 * GEOMETRY.num_expert
    assert (
        counted["messages_received"]
        == sum(port.counters()["messages_sent"] for port in experts)
        - attention[1].counters()["messages_received"]
    )


def test_a_process_that_comes_back_elsewhere_is_heard_there(road: Road, opened: ExitStack) -> None:
    """An attention node's next process is on another host; the first is there for a while yet."""
    experts = experts_of(road, opened)
    first, second = (attention_of(road, opened, 0, incarnation) for incarnation in range(2))
    meet(first, experts, ())
    enter(1, first, experts)
    check_heard(first, experts)
    meet(second, experts, range(GEOMETRY.num_expert))
    enter(1, first, experts)  # in which nothing changes
    check_heard(first, experts)
    enter(2, second, experts)
    check_heard(second, experts)
    first.close()
    experts[0].wait(0.1)
    assert experts[0].lost_peers() == frozenset()


def enter(epoch: int, attention: MixedAttentionPort, experts: Sequence[MixedExpertPort]) -> None:
    for port in (attention, *experts):
        port.set_epoch(epoch)


def check_heard(attention: MixedAttentionPort, experts: Sequence[MixedExpertPort]) -> None:
    attention.rest(0)
    for expert in experts:
        while not (messages := expert.receive()):
            expert.wait(SECONDS)
        assert len(messages) == 1
