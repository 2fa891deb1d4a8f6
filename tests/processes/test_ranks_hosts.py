"""Nodes whose ranks are on two hosts: tokens and bits as on one, and what is lost costs a pause."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.agents import AgentProcess, serve_on, wait_until_ready, write_token
from tests.support.chaos.instance import write_model
from tests.support.namespaces import Network, may_make_hosts, network
from tests.support.served import Served, serving, streamed

NAMES = ("left", "right")
PROMPTS = ([1, 2, 3], [5, 6, 7, 8] * 8, [9])
TOKENS, LONG = 24, 120
LEASE, GRACE = 5.0, 60.0
"""The lease as `serve` has it: longer than work may be late before who does it counts as hung."""
OPTIONS = (
    *("--attn-tp", "2", "--ffn-tp", "2", "--micro-batches", "1"),
    *("--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory", "4MiB"),
)
PLACES = ("attention.0=left", "attention.0.1=right", "expert.0=right", "expert.0.1=left")
"""Each node has its first rank on another host."""
PROCESSES = (
    {"attent-0", "attent-0.1", "expert-0.1"},
    {"expert-0", "expert-0.1", "attent-0.1"},
)
"""Beside the first rank there is who stands in for the second."""


@dataclass
class Site:
    network: Network
    token: Path
    served: Served
    agents: list[AgentProcess]


def answer(served: Served, prompt: list[int], count: int) -> Any:
    """Token ids, and their log-probabilities to the last bit."""
    body = {
        "prompt": prompt,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 1,
        "return_token_ids": True,
    }
    found = httpx.post(f"{served.url}/v1/completions", json=body, timeout=120)
    assert found.status_code == 200, found.text
    choice = found.json()["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, Any]:
    """By as many ranks on one host."""
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
    with network(2) as net, ExitStack() as ends:
        agents = []
        for host, name in zip(net.hosts, NAMES, strict=True):
            agents.append(AgentProcess(net, host, name, token))
            ends.callback(agents[-1].kill)
        served = serve_on(net, token, *options)
        ends.callback(served.kill)
        wait_until_ready(served, agents)
        yield Site(net, token, served, agents)


def test_tokens_and_bits_are_those_of_one_host(site: Site, expected: dict[int, Any]) -> None:
    for index, prompt in enumerate(PROMPTS):
        assert answer(site.served, prompt, TOKENS) == expected[index]
    assert [set(agent.nodes()) for agent in site.agents] == list(PROCESSES)
    nodes = httpx.get(f"{site.served.url}/admin/nodes", timeout=30).json()["nodes"]
    assert [node["host"] for node in nodes] == ["left+right", "right+left"]


def test_a_killed_rank_is_its_nodes_death_and_streams_go_on(
    site: Site, expected: dict[int, Any]
) -> None:
    """All ranks of its node are others afterwards, on both hosts."""
    left, right = site.agents
    for agent, names in ((right, ("attent-0", "attent-0.1")), (left, ("expert-0", "expert-0.1"))):
        before = pids_of(site, names)
        kill = partial(os.kill, agent.nodes()[names[1]], signal.SIGKILL)
        assert streamed(site.served, PROMPTS[0], LONG, kill) == expected[LONG][0]
        assert not before & pids_of(site, names)
    for away, home in (("right", "left"), ("left", "right")):
        cause = rf"rank 1: killed by SIGKILL \(on host {away}\) \(on host {home}\)"
        assert re.search(cause, site.served.output), site.served.output


def test_a_first_rank_that_is_killed_takes_the_others_with_it(
    site: Site, expected: dict[int, Any]
) -> None:
    names = ("attent-0", "attent-0.1")
    before = pids_of(site, names)
    pid = site.agents[0].nodes()["attent-0"]
    assert (
        streamed(site.served, PROMPTS[0], LONG, lambda: os.kill(pid, signal.SIGKILL))
        == expected[LONG][0]
    )
    assert not before & pids_of(site, names)


def test_a_stopped_rank_is_given_up(site: Site, expected: dict[int, Any]) -> None:
    before = len(site.served.output)
    pid = site.agents[1].nodes()["attent-0.1"]
    assert (
        streamed(site.served, PROMPTS[0], LONG, lambda: os.kill(pid, signal.SIGSTOP))
        == expected[LONG][0]
    )
    assert re.search(r"rank 1: hung: .*\(on host right\)", site.served.output[before:])


def test_a_pulled_link_costs_a_pause(site: Site, expected: dict[int, Any]) -> None:
    """Both nodes have a rank behind it; those end there, too. Who waits for them doesn't hang."""
    host, agent = site.network.hosts[1], site.agents[1]
    before = len(site.served.output)
    for _ in range(8):  # so that work is expected to take no longer than it does
        answer(site.served, PROMPTS[0], LONG)

    def pull() -> None:
        host.unplug()
        agent.await_nodes(0, LEASE + GRACE)
        host.plug()

    assert streamed(site.served, PROMPTS[0], LONG, pull) == expected[LONG][0]
    assert answer(site.served, PROMPTS[1], TOKENS) == expected[1]
    said = site.served.output[before:]
    assert re.search(r"host right (has been silent|can't be reached)", said), said
    assert "hung" not in said


def test_experts_move_on_all_ranks_wherever_they_are(site: Site, expected: dict[int, Any]) -> None:
    """With another node, which is on one host, half of them leave; without it they are back on both
    ranks, in slots by how popular they are: so sums have another order, and tokens are compared."""
    for experts in (2, 1):
        scaled = httpx.post(f"{site.served.url}/admin/scale", json={"ffn": experts}, timeout=60)
        assert len(scaled.json()["experts"]) == experts, scaled.text
    for index, prompt in enumerate(PROMPTS):
        assert answer(site.served, prompt, TOKENS)[0] == expected[index][0]


def test_an_agent_that_is_killed_and_started_again(site: Site, expected: dict[int, Any]) -> None:
    host = site.network.hosts[1]

    def kill() -> None:
        site.agents[1].kill()
        site.agents[1] = AgentProcess(site.network, host, NAMES[1], site.token)

    try:
        assert streamed(site.served, PROMPTS[0], LONG, kill) == expected[LONG][0]
        assert answer(site.served, PROMPTS[2], TOKENS)[0] == expected[2][0]
    finally:
        site.served.kill()
        site.agents[1].kill()


def pids_of(site: Site, names: tuple[str, ...]) -> set[int]:
    """On both hosts, who stands in for one of the other among them."""
    found = (agent.nodes() for agent in site.agents)
    return {pid for nodes in found for name, pid in nodes.items() if name in names}
