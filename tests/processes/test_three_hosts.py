"""An instance whose nodes have several ranks each, on three hosts; and who is sent away there."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from megainfer import __version__
from tests.support.agents import (
    AS_IT_IS,
    AgentProcess,
    serve_on,
    wait_until_ready,
    write_token,
)
from tests.support.chaos.instance import write_model
from tests.support.namespaces import NetHost, Network, may_make_hosts, network
from tests.support.served import Served, answer, serving, stream, tokens_of

NAMES = ("left", "middle", "right")
PROMPTS = ([1, 2, 3], [5, 6, 7, 8] * 8, [9])
TOKENS, LONG = 24, 120
LEASE, GRACE = 3.0, 60.0
MOVE_AFTER = 8.0
"""Longer than a link is pulled where nodes are to wait for it."""
ANOTHER_TOKEN = "fedcba9876543210" * 4
OPTIONS = (
    *("--ffn-gpus", "2", "--attn-tp", "2", "--ffn-tp", "2", "--micro-batches", "1"),
    *("--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory", "4MiB"),
)
PLACES = ("attention.0=left", "expert.0=middle", "expert.1=right")
RANKS = ({"attent-0", "attent-0.1"}, {"expert-0", "expert-0.1"}, {"expert-1", "expert-1.1"})
OTHER = "tests.support.other_agent"


@dataclass
class Site:
    network: Network
    token: Path
    served: Served
    agents: list[AgentProcess]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, list[int]]:
    """Of the prompts' answers, and of a long one of the first: by as many ranks on one host."""
    with serving(str(model), *OPTIONS) as served:
        return {
            **{index: answer(served, prompt, TOKENS) for index, prompt in enumerate(PROMPTS)},
            LONG: answer(served, PROMPTS[0], LONG),
        }


@pytest.fixture(scope="module")
def site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    may_make_hosts()
    token = write_token(tmp_path_factory.mktemp("site"))
    places = [word for place in PLACES for word in ("--place", place)]
    options = (str(model), *OPTIONS, *places, "--agent-lease", f"{LEASE:g}")
    options = (*options, "--move-nodes-after", f"{MOVE_AFTER:g}")
    with network(3) as net, ExitStack() as ends:
        agents = []
        for host, name in zip(net.hosts, NAMES, strict=True):
            agents.append(AgentProcess(net, host, name, token))
            ends.callback(agents[-1].kill)
        served = serve_on(net, token, *options, agents=3)
        ends.callback(served.kill)
        wait_until_ready(served, agents)
        yield Site(net, token, served, agents)


def test_tokens_are_those_of_one_host(site: Site, expected: dict[int, list[int]]) -> None:
    for index, prompt in enumerate(PROMPTS):
        assert answer(site.served, prompt, TOKENS) == expected[index]
    assert [set(agent.nodes()) for agent in site.agents] == list(RANKS)
    nodes = httpx.get(f"{site.served.url}/admin/nodes", timeout=30).json()["nodes"]
    assert [node["host"] for node in nodes] == list(NAMES)


def test_a_killed_rank_is_its_nodes_death_and_streams_go_on(
    site: Site, expected: dict[int, list[int]]
) -> None:
    for agent, name in ((site.agents[2], "expert-1.1"), (site.agents[0], "attent-0.1")):
        before = set(agent.nodes().values())
        events = stream(site.served, PROMPTS[0], LONG, temperature=0, return_token_ids=True)
        told = tokens_of(next(events))
        os.kill(agent.nodes()[name], signal.SIGKILL)
        for event in events:
            told += tokens_of(event)
        assert told == expected[LONG]
        assert "rank 1: killed by SIGKILL (on host" in site.served.output
        assert not before & set(agent.nodes().values()), "both ranks are others"


def test_a_stopped_rank_is_given_up(site: Site, expected: dict[int, list[int]]) -> None:
    agent = site.agents[1]
    before = len(site.served.output)
    os.kill(agent.nodes()["expert-0.1"], signal.SIGSTOP)
    await_that(
        lambda: re.search(r"rank 1: hung: .*\(on host middle\)", site.served.output[before:]),
        lambda: site.served.output,
    )
    assert answer(site.served, PROMPTS[0], TOKENS) == expected[0]


def test_a_pulled_link_costs_a_pause(site: Site, expected: dict[int, list[int]]) -> None:
    host, agent = site.network.hosts[2], site.agents[2]
    events = stream(site.served, PROMPTS[0], LONG, temperature=0, return_token_ids=True)
    told = tokens_of(next(events))
    host.unplug()
    agent.await_nodes(0, LEASE + GRACE)
    host.plug()
    for event in events:
        told += tokens_of(event)
    assert told == expected[LONG]


# --- who is sent away -----------------------------------------------------------------------------


def test_an_agent_with_another_token_is_refused_and_logged(
    site: Site, expected: dict[int, list[int]], tmp_path: Path
) -> None:
    token = write_token(tmp_path, ANOTHER_TOKEN)
    assert_sent_away(
        site,
        AS_IT_IS,
        token,
        "it refuses this token: use the token file that it has",
        r"nobody let in: an agent at ADDRESS:\d+: it has not proved that it has this token",
    )
    assert answer(site.served, PROMPTS[0], TOKENS) == expected[0]


def test_an_agent_of_another_version_is_named(site: Site) -> None:
    assert_sent_away(
        site,
        (OTHER, "release"),
        site.token,
        f"refuses this host: it runs MegaInfer 0.0.9, and the supervisor {__version__}",
        r"refused host 'fourth' \(an agent at ADDRESS:\d+\): it runs MegaInfer 0\.0\.9, and the "
        rf"supervisor {re.escape(__version__)}",
    )


def test_one_that_speaks_another_version_between_hosts_is_named(site: Site) -> None:
    assert_sent_away(
        site,
        (OTHER, "language"),
        site.token,
        "it speaks version 1 between hosts, this is 2",
        r"nobody let in: an agent at ADDRESS:\d+: it speaks version 2 between hosts, this is 1",
    )


def assert_sent_away(
    site: Site, program: tuple[str, ...], token: Path, told: str, logged: str
) -> None:
    """told: by the agent, which ends. logged: by the supervisor, who says so of one in a second:
    where the last has been in it, another comes."""
    host: NetHost = site.network.hosts[1]
    before = len(site.served.output)
    pattern = re.compile(logged.replace("ADDRESS", re.escape(host.address)))

    def is_logged() -> bool:
        agent = AgentProcess(site.network, host, "fourth", token, program)
        try:
            assert agent.end() == 2
        finally:
            agent.kill()
        assert told in " ".join(agent.output.split())
        return pattern.search(site.served.output, before) is not None

    await_that(is_logged, lambda: site.served.output)
    assert "fourth" not in httpx.get(f"{site.served.url}/admin/nodes", timeout=30).text


def await_that(holds: Callable[[], object], said: Callable[[], str]) -> None:
    deadline = monotonic() + GRACE
    while not holds():
        assert monotonic() < deadline, said()
        sleep(0.05)  # lines are read by a thread that tells nobody


# --- a host that stays away -----------------------------------------------------------------------


def test_the_nodes_of_a_host_that_stays_away_are_started_on_another(
    site: Site, expected: dict[int, list[int]]
) -> None:
    """The last of these tests: a stream waits for it, and its tokens are those of other ranks of
    the same sizes."""
    name = host_of(site, 2)
    host = site.network.hosts[NAMES.index(name)]
    events = stream(site.served, PROMPTS[0], LONG, temperature=0, return_token_ids=True)
    told = tokens_of(next(events))
    host.unplug()
    for event in events:
        told += tokens_of(event)
    assert told == expected[LONG]
    new = host_of(site, 2)
    assert new != name
    assert f"expert node 1 is started on host {new}" in site.served.output
    assert {"expert-1", "expert-1.1"} <= set(site.agents[NAMES.index(new)].nodes())
    host.plug()
    site.agents[NAMES.index(name)].await_nodes(0, GRACE)
    await_that(lambda: f"host {name} is back" in site.served.output, lambda: site.served.output)
    assert answer(site.served, PROMPTS[1], TOKENS) == expected[1]
    assert host_of(site, 2) == new, "it stays where it is"


def host_of(site: Site, place: int) -> str:
    nodes = httpx.get(f"{site.served.url}/admin/nodes", timeout=30).json()["nodes"]
    name: str = nodes[place]["host"]
    return name
