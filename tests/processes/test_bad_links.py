"""The supervisor's connections to another host, when they are slow, stall and break, by seed: what
is said is heard whole and in order or there is an error, tokens are exact, and nothing hangs."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from megainfer.errors import MegaInferError
from megainfer.hosts import wire as wire_module
from megainfer.hosts.wire import Wire, poll
from megainfer.messages.hosts import (
    ForFrontEnd,
    ForNode,
    from_attendant_decoder,
    to_attendant_decoder,
)
from tests.support.agents import READY_SECONDS, AgentProcess, write_token
from tests.support.bad_network import BadNetwork, Fault, Route, Way, drawn, drawn_fault
from tests.support.bad_serve import ROUTES
from tests.support.chaos.instance import write_model
from tests.support.served import Served, serving, stream, tokens_of

TOKEN = b"a token that is long enough to be one"
LEASE, PATIENT_LEASE, SHORT_SECONDS, END_SECONDS = 1.0, 60.0, 0.2, 90.0
"""Of silence: where the network falls silent for ever, and where it doesn't, on a busy machine."""
PROOF_SECONDS = 10.0
QUICK, ALL, TOGETHER = 50, 500, 50
MESSAGES, MOST_BYTES = 12, 4000

batches = pytest.mark.parametrize(
    "first",
    [pytest.param(n, marks=() if n < QUICK else pytest.mark.slow) for n in range(0, ALL, TOGETHER)],
)


@dataclass
class End:
    """One of a connection. wire: None once it has been closed."""

    wire: Wire[Any] | None
    to_say: list[Any]
    heard: list[Any] = field(default_factory=list)
    error: str | None = None

    def turn(self) -> None:
        if self.wire is None:
            return
        try:
            if self.to_say:
                self.wire.send(self.to_say.pop(0))
            self.heard += self.wire.pump()
        except MegaInferError as error:
            self.error = str(error)
            self.wire.close()
            self.wire = None


@dataclass
class Talk:
    """Both ends of a connection that leads through the network."""

    seed: int
    fault: Fault | None
    caller: End
    listener: End
    said: tuple[list[Any], list[Any]]  # by the one and by the other

    @property
    def is_over(self) -> bool:
        if self.caller.wire is None or self.listener.wire is None:
            return self.caller.wire is self.listener.wire  # both have noticed
        return [len(end.heard) for end in (self.listener, self.caller)] == [MESSAGES, MESSAGES]

    def check(self) -> None:
        by_caller, by_listener = self.said
        assert self.listener.heard == by_caller[: len(self.listener.heard)], self.seed
        assert self.caller.heard == by_listener[: len(self.caller.heard)], self.seed
        whole = self.listener.heard == by_caller and self.caller.heard == by_listener
        if self.fault is None or not self.fault.is_final:
            assert whole, (self.seed, self.caller.error, self.listener.error)
        if not whole:
            assert (self.caller.error or "").startswith("host right"), self.seed
            assert (self.listener.error or "").startswith("a stand-in"), self.seed


@pytest.fixture
def bad() -> Iterator[BadNetwork]:
    network = BadNetwork()
    yield network
    network.close()


def begun(network: BadNetwork, seed: int) -> Talk:
    lots = Random(seed)
    fault = drawn_fault(lots, SHORT_SECONDS) if lots.random() < 0.8 else None
    manners = {way: drawn(lots) for way in Way}
    way = lots.choice(list(Way))
    manners[way] = replace(manners[way], fault=fault)
    said = (
        [ForNode(0, n, lots.randbytes(lots.randint(0, MOST_BYTES))) for n in range(MESSAGES)],
        [ForFrontEnd(0, n, lots.randbytes(lots.randint(0, MOST_BYTES))) for n in range(MESSAGES)],
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        route = network.route(listening.getsockname(), manners)
        near = socket.create_connection(route.address, timeout=10)
        listening.settimeout(10)
        far, _ = listening.accept()
    lease = LEASE if fault is not None and fault.is_final else PATIENT_LEASE
    caller = Wire(near, TOKEN, from_attendant_decoder, "host right", True, lease)
    listener = Wire(far, TOKEN, to_attendant_decoder, "a stand-in", False, lease)
    return Talk(seed, fault, End(caller, [*said[0]]), End(listener, [*said[1]]), said)


@batches
def test_what_is_said_is_heard_or_there_is_an_error(
    bad: BadNetwork, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Many conversations at once, each through a connection of its own seed."""
    monkeypatch.setattr(wire_module, "PULSE_SECONDS", LEASE / 10)
    monkeypatch.setattr(wire_module, "HANDSHAKE_SECONDS", PROOF_SECONDS)
    talks = [begun(bad, seed) for seed in range(first, first + TOGETHER)]
    deadline = monotonic() + END_SECONDS
    while going := [talk for talk in talks if not talk.is_over]:
        assert monotonic() < deadline, [talk.seed for talk in going]
        ends = [end for talk in talks for end in (talk.caller, talk.listener)]
        for end in ends:  # of those that are over, too: they say that they live
            end.turn()
        poll([end.wire for end in ends if end.wire is not None], 0.02)
    for talk in talks:
        talk.check()
        for end in (talk.caller, talk.listener):
            if end.wire is not None:
                end.wire.close()


# --- whole processes ------------------------------------------------------------------------------

TOKENS, NODE_LEASE = 120, 2.0
LOST = re.compile(r"host right is lost|died: host right|\(on host right\)")
PROMPT = [1, 2, 3]
OPTIONS = (
    *("--ffn-gpus", "1", "--micro-batches", "1", "--dtype", "float32"),
    *("--max-model-len", "1024", "--kv-cache-memory", "4MiB"),
)
served_seeds = pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=() if n < 3 else pytest.mark.slow) for n in range(40)],
)


@dataclass
class Site:
    """Both nodes are on host right, which is this one, behind two routes: to the supervisor and
    to the agent."""

    network: BadNetwork
    joining: Route
    starting: Route
    served: Served
    agent: AgentProcess


def test_what_waits_for_the_proof_is_said_first_also_to_who_says_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other's proof, its last words and its end come at once."""
    monkeypatch.setattr(wire_module, "PULSE_SECONDS", PATIENT_LEASE)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname(), timeout=10)
        far, _ = listening.accept()
    ending = far.dup()
    caller = Wire(near, TOKEN, from_attendant_decoder, "host right", True, PATIENT_LEASE)
    listener = Wire(far, TOKEN, to_attendant_decoder, "a stand-in", False, PATIENT_LEASE)
    first, second, last = ForNode(0, 1, b"a"), ForNode(0, 2, b"b"), ForFrontEnd(0, 1, b"c")
    caller.send(first)
    listener.pump()
    while not listener.is_open:
        assert caller.pump() == []
        assert listener.pump() == []
    listener.send(last)
    ending.shutdown(socket.SHUT_WR)
    assert caller.pump() == [last]
    caller.send(second)
    heard = list[Any]()
    while not heard or heard[-1] != second:
        heard += listener.pump()
        poll([listener], 0.02)
    assert heard == [first, second]
    for end in (caller, listener, ending):
        end.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    with serving(str(model), *OPTIONS) as served:
        return [token for event in asked(served) for token in tokens_of(event)]


@pytest.fixture(scope="module")
def site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    token = write_token(tmp_path_factory.mktemp("site"))
    supervisor, agent_port = free_port(), free_port()
    with ExitStack() as ends:
        network = BadNetwork()
        ends.callback(network.close)
        joining = network.route(("127.0.0.1", supervisor))
        starting = network.route(("127.0.0.1", agent_port))
        here = ("--host", "127.0.0.1", "--port", str(agent_port))
        agent = AgentProcess.joining(joining.address, token, *here)
        ends.callback(agent.kill)
        served = Served(
            [
                *(str(model), *OPTIONS, "--agents", "1", "--token-file", str(token)),
                *("--listen-agents", f"127.0.0.1:{supervisor}"),
                *("--agent-lease", f"{NODE_LEASE:g}"),
            ],
            program="tests.support.bad_serve",
            environment={ROUTES: "right={}:{}".format(*starting.address)},
            wait=False,
        )
        ends.callback(served.kill)
        assert served.wait_until_ready(), served.output + agent.output
        yield Site(network, joining, starting, served, agent)


@served_seeds
def test_streams_go_on_or_say_why_they_end(site: Site, expected: list[int], seed: int) -> None:
    """A stream is on its way when something befalls the connections of its nodes' host; then the
    network is well again, and so is the instance."""
    lots = Random(seed)
    route = lots.choice((site.starting, site.starting, site.joining))
    way, fault = lots.choice(list(Way)), drawn_fault(lots, NODE_LEASE / 3)
    events = asked(site.served)
    first = next(events)
    before = len(site.served.output)
    site.network.disturb(route, way, fault)
    with ThreadPoolExecutor(1) as threads:
        rest = threads.submit(list, events)
        await_that(lambda: rest.done() or LOST.search(site.served.output[before:]), site)
        site.network.disturb(route, way, None)
        heard = [first, *rest.result(READY_SECONDS)]
    told = [token for event in heard for token in tokens_of(event)]
    errors = [event["error"]["message"] for event in heard if "error" in event]
    assert told == expected[: len(told)]
    if errors:
        assert re.search(r"node \d", errors[0]), errors
    else:
        assert told == expected
    await_that(lambda: is_ok(site), site)
    assert [t for event in asked(site.served) for t in tokens_of(event)] == expected


def asked(served: Served) -> Iterator[dict[str, Any]]:
    return stream(served, PROMPT, TOKENS, temperature=0, return_token_ids=True)


def is_ok(site: Site) -> bool:
    with suppress(httpx.HTTPError):
        said: str = httpx.get(f"{site.served.url}/health", timeout=30).json()["status"]
        return said == "ok"
    return False


def await_that(holds: Any, site: Site) -> None:
    deadline = monotonic() + READY_SECONDS
    while not holds():
        assert monotonic() < deadline, site.served.output + site.agent.output
        sleep(0.05)  # lines are read by a thread that tells nobody


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
