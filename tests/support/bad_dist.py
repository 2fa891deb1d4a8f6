"""Whole nodes over the road `dist`, whose connections, gloo's too, lead through a `BadNetwork`."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from random import Random
from time import monotonic
from typing import Any

from torch._C._distributed_c10d import Store

from megainfer.errors import MegaInferError
from megainfer.m2n.dist import groups, link
from megainfer.m2n.dist.channel import Completion, Group
from megainfer.m2n.dist.groups import Groups
from megainfer.m2n.dist.listening import Address
from megainfer.m2n.dist.ports import DistAttentionPort, DistExpertPort
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.host import meeting
from megainfer.m2n.roads import Seat
from megainfer.topology import Membership
from tests.support.bad_network import BadNetwork, Fault, Manners, Way, drawn, drawn_fault
from tests.support.local_cluster import LocalCluster
from tests.support.m2n_cluster import road_of

ATTENTION_HOST, EXPERT_HOST = "127.0.0.2", "127.0.0.3"
"""Of two gloo ends the one with the larger address connects."""
SHORT_SECONDS = 0.3
FAULTS = (0, 1, 1, 1, 2, 3)
"""How many of an instance's connections something befalls, as they are first made or made again."""
BAD_MEETINGS = 2
MOST_MEETINGS = 8
PATIENT_SECONDS = 15.0
_SOCKADDR_BYTES = 8
_INET = (2).to_bytes(2, "little")

CONNECTIONS = ("control", "to-expert", "to-attention")


def be_patient() -> float:
    """In this process, whose bounds were made short: seconds for a meeting, from now on."""
    link.SILENCE_SECONDS = 10
    link.GROUP_SECONDS = groups.GROUP_SECONDS = meeting.HANDSHAKE_SECONDS = PATIENT_SECONDS
    return PATIENT_SECONDS


class RoutedStore(Store):
    """What a group tells the other end of itself, a route's address being in place of its own."""

    def __init__(self, inner: Store, groups: "RoutedGroups", name: str) -> None:
        super().__init__()
        self._inner, self._groups, self._name = inner, groups, name

    def set(self, key: str, value: Any) -> None:
        data = bytes(value)
        own = socket_address(self._groups.host)
        if (at := data.find(own)) >= 4:
            port = int.from_bytes(data[at - 2 : at], "big")
            route = self._groups.routed(self._name, (self._groups.host, port))
            data = data[: at - 2] + route[1].to_bytes(2, "big") + data[at:]
        self._inner.set(key, data)

    def get(self, key: str) -> bytes:
        return self._inner.get(key)

    def wait(self, keys: list[str], timeout: Any = None) -> None:
        self._inner.wait(keys)

    def check(self, keys: list[str]) -> bool:
        return self._inner.check(keys)


def socket_address(host: str) -> bytes:
    """As it is in a `sockaddr_in`, behind the port."""
    return bytes(map(int, host.split(".")))


class RoutedGroups:
    """`groups.Groups` of an attention node; its next pair's connections lead through `routes`."""

    def __init__(self, inner: Groups, network: BadNetwork, host: str) -> None:
        self.kind, self.host = inner.kind, host
        self.completion: Completion = inner.completion
        self.tags = inner.tags
        self._inner, self._network = inner, network
        self._next = threading.local()  # pairs are met at once, each in a thread
        self._kept: list[Store] = []

    @property
    def device(self) -> Any:
        return self._inner.device

    def expect(self, manners: dict[str, dict[Way, Manners]]) -> None:
        """Of the connections of the pair that this thread makes next."""
        self._next.manners, self._next.names = manners, list(CONNECTIONS[1:])

    def make(self, store: Store, rank: int) -> Group:
        routed = RoutedStore(store, self, self._next.names.pop(0))
        self._kept.append(routed)
        return self._inner.make(routed, rank)

    def routed(self, name: str, target: tuple[str, int]) -> tuple[str, int]:
        return self._network.route(target, self._next.manners.get(name), self.host).address

    def close(self) -> None:
        self._inner.close()


@dataclass
class Outcome:
    """faults: by attention node, expert node and which of their meetings. unmet: why a pair didn't
    meet. lost: pairs that lost each other."""

    faults: dict[tuple[int, int, int], tuple[str, Way, Fault]] = field(default_factory=dict)
    unmet: list[str] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)


class BadHub:
    """The ports of an instance's nodes."""

    def __init__(self, geometry: Geometry, seed: int, seconds: float) -> None:
        self._geometry, self._seconds = geometry, seconds
        self._road = road_of("dist")
        self._lots = Random(seed)
        self.network = BadNetwork()
        self.attention: list[DistAttentionPort] = []
        self.experts: list[DistExpertPort] = []
        self.groups: list[RoutedGroups] = []
        self.outcome = Outcome()
        self._met: dict[tuple[int, int], int] = {}

    def attention_port(self, index: int) -> DistAttentionPort:
        road = replace(self._road, host=ATTENTION_HOST)
        port = DistAttentionPort(road, Seat(self._geometry, index))
        site = port._site
        routed = RoutedGroups(site.terms.groups, self.network, ATTENTION_HOST)
        site.terms = replace(site.terms, groups=routed)
        self.attention.append(port)
        self.groups.append(routed)
        return port

    def expert_port(self, index: int) -> DistExpertPort:
        road = replace(self._road, host=EXPERT_HOST)
        self.experts.append(DistExpertPort(road, Seat(self._geometry, index)))
        return self.experts[-1]

    def meet_all(self) -> None:
        count = range(len(self.attention)), range(len(self.experts))
        pairs = list(product(*count))
        for _ in range(self._lots.choice(FAULTS)):
            attempt = *self._lots.choice(pairs), self._lots.randint(1, BAD_MEETINGS)
            name, way = self._lots.choice(CONNECTIONS), self._lots.choice(list(Way))
            fault = drawn_fault(self._lots, SHORT_SECONDS)
            self.outcome.faults[attempt] = name, way, fault
        self.meet(pairs)

    def meet(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Again and again, as the supervisor has them, until they have."""
        for number in range(MOST_MEETINGS):
            if number > BAD_MEETINGS:
                self._seconds = be_patient()  # it is this machine that is slow
            wishes = [(pair, self._drawn(pair)) for pair in pairs]
            with ThreadPoolExecutor(len(wishes)) as threads:
                met = list(threads.map(lambda wish: self._meet(*wish), wishes))
            pairs = [pair for pair, done in zip(pairs, met, strict=True) if not done]
            if not pairs:
                return
        raise AssertionError(f"{pairs} never meet: {self.outcome}")

    def _meet(self, pair: tuple[int, int], manners: dict[str, dict[Way, Manners]]) -> bool:
        attention, expert = pair
        target = self.experts[expert].address
        route = self.network.route(target, manners["control"], EXPERT_HOST)
        self.groups[attention].expect(manners)
        port = self.attention[attention]
        try:
            port.visit_at(Address(*route.address), (expert, 0), monotonic() + self._seconds)
        except MegaInferError as error:
            self.outcome.unmet.append(str(error))
            return False
        return True

    def _drawn(self, pair: tuple[int, int]) -> dict[str, dict[Way, Manners]]:
        """All of a pair's connections are slow, each in its own way."""
        times = self._met[pair] = self._met.get(pair, 0) + 1
        manners = {name: {way: drawn(self._lots) for way in Way} for name in CONNECTIONS}
        if (found := self.outcome.faults.get((*pair, times))) is not None:
            name, way, fault = found
            manners[name][way] = replace(manners[name][way], fault=fault)
        return manners


class BadCluster(LocalCluster):
    """`LocalCluster`, whose nodes meet again when they have lost each other: in the next epoch,
    as the supervisor has them. seed: of what befalls their connections."""

    def __init__(self, seed: int, *args: Any, meeting_seconds: float, **options: Any) -> None:
        self._seed, self._seconds = seed, meeting_seconds
        self._began = False
        super().__init__(*args, **options)

    def _hub(self, geometry: Geometry) -> BadHub:
        self.hub = BadHub(geometry, self._seed, self._seconds)
        return self.hub

    def enter(
        self, membership: Membership, order: Sequence[int] | None = None, switches: Any = None
    ) -> None:
        if not self._began:
            self._began = True
            self.hub.meet_all()
        super().enter(membership, order, switches)

    def turn(self) -> bool:
        worked = super().turn()
        if not worked:
            self.members()[0].port.wait(1e-3)
        lost = [(n, e) for n, node in enumerate(self.attention) for e in node.port.lost_peers()]
        if lost:
            self._mend(lost)
        return worked

    def _mend(self, lost: Sequence[tuple[int, int]]) -> None:
        self.hub.outcome.lost += lost
        self.hub.meet(lost)
        self.enter(replace(self.membership, epoch=self.membership.epoch + 1))

    def close(self) -> None:
        super().close()
        self.hub.network.close()


class Cuts(logging.Handler):
    """Why links were cut off, as the log has it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.reasons.append(record.getMessage())
