"""An instance whose nodes are on two hosts: its tokens, and what becomes of what is lost."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
import trustme

from tests.support.agents import (
    READY_SECONDS,
    AgentProcess,
    examine,
    serve_on,
    wait_until_ready,
    write_token,
)
from tests.support.chaos.instance import write_model
from tests.support.namespaces import NetHost, Network, may_make_hosts, network
from tests.support.served import Served, answer, serving, stream
from tests.support.tls import issued

PROMPTS = ([1, 2, 3], [5, 6, 7, 8] * 8, [9])
TOKENS = 24
LONG = 120
LEASE = 3.0
PATIENT, IMPATIENT = 60.0, 6.0
"""Recovery timeouts: most tests don't ask how long a node takes that starts again."""
READ_AGAIN, LOST = "keys and limits were read again", "WARNING host right is lost: host right "
DIED = re.compile(r"WARNING expert node 1 \(process \d+\) died: host right .*; it is started again")
SPEAK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as door:
    door.connect(chr(0) + sys.argv[1])
    door.sendall(bytes(64))
"""
GRACE = 20.0
"""Of bounds, on a machine that others use."""
OPTIONS = (
    *("--ffn-gpus", "2", "--micro-batches", "1", "--dtype", "float32"),
    *("--max-model-len", "1024", "--kv-cache-memory", "4MiB"),
)


@dataclass
class Site:
    """Attention node 0 and expert node 0 are on left, expert node 1 on right."""

    network: Network
    token: Path
    served: Served
    left: AgentProcess
    right: AgentProcess
    doctor: str  # what `megainfer doctor` has said of the two before
    options: Path
    tls: tuple[str, ...]  # options of all

    def wait_for_nodes(self, seconds: float) -> None:
        """From now on requests do, for so long."""
        write_recovery(self.options, seconds)
        count = self.served.output.count(READ_AGAIN)
        self.served.process.send_signal(signal.SIGHUP)
        _await(self.served, lambda output: output.count(READ_AGAIN) > count)

    @property
    def right_host(self) -> NetHost:
        return self.network.hosts[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, list[int]]:
    """Of the first prompt's answers by their lengths, and of the others: all on one host."""
    with serving(str(model), *OPTIONS) as served:
        return {
            **{index: answer(served, prompt, TOKENS) for index, prompt in enumerate(PROMPTS)},
            LONG: answer(served, PROMPTS[0], LONG),
        }


@pytest.fixture(scope="module")
def site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    may_make_hosts()
    folder = tmp_path_factory.mktemp("site")
    token, options = write_token(folder), folder / "options.yaml"
    tls = tuple(issued(folder, trustme.CA()).options())
    write_recovery(options, PATIENT)
    with network(2) as net:
        agents = [
            AgentProcess(net, host, name, token, more=tls)
            for host, name in zip(net.hosts, ("left", "right"), strict=True)
        ]
        told = examine(net, token, *tls)
        served = serve_on(
            net,
            token,
            *(str(model), *OPTIONS, "--place", "attention.0=left"),
            *("--place", "expert.0=left", "--place", "expert.1=right"),
            *("--agent-lease", f"{LEASE:g}", "--config", str(options), *tls),
        )
        site = Site(net, token, served, *agents, told, options, tls)
        try:
            wait_until_ready(served, agents)
            yield site
        finally:
            served.kill()
            site.left.kill()
            site.right.kill()


def write_recovery(options: Path, seconds: float) -> None:
    options.write_text(f"recovery-timeout: {seconds:g}\n")


def speak_at_door(host: NetHost, pid: int, expert: int) -> None:
    """What is no M2N, where this expert node meets attention nodes of its host."""
    rows = [row.split() for row in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    (name,) = {row[7][1:] for row in rows if len(row) > 7 and f"-expert-{expert}-" in row[7]}
    command = [*host.command, sys.executable, "-c", SPEAK, name]
    subprocess.run(command, timeout=60, check=True)


def test_the_doctor_measures_both_ways(site: Site) -> None:
    """How long they take is no matter, on a machine that others use."""
    for way in (r"left +right", r"right +left"):
        match = re.search(rf"^{way} +(\d+) us +(\d+) +([+-][\d.]+) ms", site.doctor, re.MULTILINE)
        assert match is not None, site.doctor
        assert int(match[1]) > 0
        assert int(match[2]) > 0
        assert abs(float(match[3])) < 500


def test_tokens_are_those_of_one_host(site: Site, expected: dict[int, list[int]]) -> None:
    for index, prompt in enumerate(PROMPTS):
        assert answer(site.served, prompt, TOKENS) == expected[index]
    assert set(site.left.nodes()) == {"attent-0", "expert-0"}
    assert set(site.right.nodes()) == {"expert-1"}
    nodes = httpx.get(f"{site.served.url}/admin/nodes", timeout=30).json()["nodes"]
    assert [(node["role"], node["host"]) for node in nodes] == [
        ("attention", "left"),
        ("expert", "left"),
        ("expert", "right"),
    ]


def test_each_pair_has_the_road_that_leads_there(site: Site) -> None:
    _again(site)
    (attention, *_) = httpx.get(f"{site.served.url}/admin/nodes", timeout=30).json()["nodes"]
    assert attention["roads"] == {"shm": [0], "dist": [1]}
    metrics = httpx.get(f"{site.served.url}/metrics", timeout=30).text
    found = re.findall(r'm2n_road\{expert="(\d)",.*road="(\w+)",.*\} 1', metrics)
    assert sorted(found) == [("0", "shm"), ("1", "dist")], metrics


@pytest.mark.parametrize("authority", [True, False])
def test_who_shows_no_certificate_of_the_authority_is_sent_away(
    site: Site, tmp_path: Path, authority: bool
) -> None:
    """Without TLS it is never let in, with another authority's it hears at once that it isn't."""
    before = len(site.served.output)
    more = issued(tmp_path, trustme.CA()).options() if authority else ["--join-timeout", "1"]
    agent = AgentProcess(site.network, site.right_host, "third", site.token, more=more)
    try:
        assert agent.end() != 0, agent.output
    finally:
        agent.kill()
    said = "certificate" if authority else "one of the two wants TLS and the other has no --tls-"
    assert said in agent.output
    _await(site.served, lambda output: "nobody let in: an agent at" in output[before:])


def test_what_a_node_logs_comes_with_its_host_and_name(site: Site) -> None:
    """Here that somebody came to its M2N door and spoke something else."""
    speak_at_door(site.right_host, site.right.nodes()["expert-1"], 1)
    _await(site.served, re.compile(r"^right expert-1 \| .* let nobody in", re.MULTILINE).search)


def test_a_killed_node_is_back_and_its_streams_go_on(
    site: Site, expected: dict[int, list[int]]
) -> None:
    for agent, name in ((site.right, "expert-1"), (site.left, "attent-0")):
        events = stream(site.served, PROMPTS[0], LONG, temperature=0, return_token_ids=True)
        told = _tokens(next(events))
        os.kill(agent.nodes()[name], signal.SIGKILL)
        for event in events:
            told += _tokens(event)
        assert told == expected[LONG]
        assert "killed by SIGKILL (on host" in site.served.output


def test_a_pulled_link_ends_nodes_there_and_requests_here_within_their_bounds(
    site: Site, expected: dict[int, list[int]]
) -> None:
    """Its nodes are ended by their lease; who waits hears of it after the recovery timeout; and
    with the link all is back."""
    site.wait_for_nodes(IMPATIENT)
    events = stream(site.served, PROMPTS[0], LONG, temperature=0, return_token_ids=True)
    told = _tokens(next(events))
    site.right_host.unplug()
    began = monotonic()
    site.right.await_nodes(0, LEASE + GRACE)
    last = [event for event in events if not _is_tokens(event, told)][-1]
    assert LEASE < monotonic() - began < LEASE + IMPATIENT + GRACE
    assert "expert node 1" in last["error"]["message"]
    assert "host right" in last["error"]["message"]
    assert told == expected[LONG][: len(told)]
    site.right_host.plug()
    site.wait_for_nodes(PATIENT)
    _again(site)
    assert answer(site.served, PROMPTS[0], TOKENS) == expected[0]


def test_a_lost_agent_is_its_nodes_death_and_another_of_its_name_has_them_again(
    site: Site, expected: dict[int, list[int]]
) -> None:
    before = len(site.served.output)
    site.right.kill()
    _await(site.served, lambda output: LOST in output[before:] and DIED.search(output[before:]))
    site.right = AgentProcess(site.network, site.right_host, "right", site.token, more=site.tls)
    _again(site)
    assert answer(site.served, PROMPTS[0], TOKENS) == expected[0]


def test_the_end_of_the_supervisor_ends_all_nodes(site: Site) -> None:
    """The last of these tests: without any order, and agents look for another one."""
    site.served.process.kill()
    for agent in (site.left, site.right):
        agent.await_nodes(0, LEASE + GRACE)
        assert agent.process.poll() is None, "it joins anew"


def _tokens(event: dict[str, Any]) -> list[int]:
    ids: list[int] = event["choices"][0].get("token_ids") or [] if "choices" in event else []
    return ids


def _is_tokens(event: dict[str, Any], told: list[int]) -> bool:
    """Whether it is no error; then `told` has its tokens, too."""
    told += _tokens(event)
    return "error" not in event


def _again(site: Site) -> None:
    """All serve again."""
    deadline = monotonic() + READY_SECONDS
    while httpx.get(f"{site.served.url}/health", timeout=30).json()["status"] != "ok":
        assert monotonic() < deadline, site.served.output
        sleep(0.1)  # what /health says, nobody tells unasked


def _await(served: Served, holds: Callable[[str], object]) -> None:
    """Of its output."""
    deadline = monotonic() + GRACE
    while not holds(served.output):
        assert monotonic() < deadline, served.output
        sleep(0.05)  # lines are read by a thread that tells nobody
