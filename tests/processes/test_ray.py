"""An instance on a cluster of Ray: three nodes of this machine, at three loopback addresses."""

import os
import re
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.processes.launched import OPTIONS, answer, await_health, await_output, hosts_of
from tests.support.chaos.instance import write_model
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.served import Served, run_cli, serving, session_members

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray isn't installed: megainfer[ray]"),
]
AGENTS = ("--launcher", "ray", "--agents", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    with serving(str(model), *OPTIONS) as served:
        return answer(served)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def served(model: Path, cluster: RayCluster) -> Iterator[Served]:
    served = Served([str(model), *OPTIONS, *AGENTS, "--ray-address", cluster.address], wait=False)
    try:
        assert served.wait_until_ready(180.0), served.output
        yield served
    finally:
        served.kill()


def address_of(served: Served, host: str) -> str:
    found = re.findall(rf"host {host} (?:has joined \(|is back, at )([\d.]+)", served.output)
    assert found, served.output
    last: str = found[-1]
    return last


def test_where_there_is_no_cluster_it_is_said(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where Ray looks for one of this machine
    done = run_cli("serve", str(model), *AGENTS, timeout=120)
    assert done.returncode == 2
    assert "there is no Ray cluster at --ray-address auto" in done.stderr


def test_agents_are_actors_on_nodes_of_their_own(served: Served, expected: list[int]) -> None:
    assert answer(served) == expected
    assert hosts_of(served) == {"ray-0", "ray-1"}
    assert address_of(served, "ray-0") != address_of(served, "ray-1")


def test_an_agent_that_is_killed_comes_back(served: Served, expected: list[int]) -> None:
    (agent,) = agents("ray-0")
    before = served.output.count("host ray-0 is back")
    os.kill(agent, signal.SIGKILL)
    await_output(served, lambda text: text.count("host ray-0 is back") > before, 120.0)
    await_health(served)
    assert answer(served) == expected


def test_the_host_of_a_node_that_is_removed_is_back_on_another(
    served: Served, cluster: RayCluster, expected: list[int]
) -> None:
    head, _, _ = cluster.address.partition(":")  # with which the cluster itself would go
    stays, goes = sorted(("ray-0", "ray-1"), key=lambda name: address_of(served, name) != head)
    gone = address_of(served, goes)
    before = served.output.count(f"host {goes} is back")
    cluster.remove(gone)
    await_output(served, lambda text: text.count(f"host {goes} is back") > before, 100.0)
    await_health(served)
    assert address_of(served, goes) not in (gone, address_of(served, stays))
    assert answer(served) == expected
    assert hosts_of(served) == {"ray-0", "ray-1"}


def test_too_few_nodes_are_said(served: Served, cluster: RayCluster, model: Path) -> None:
    wish = ("--launcher", "ray", "--agents", "4", "--ray-address", cluster.address)
    done = run_cli("serve", str(model), *wish, "--agents-timeout", "5", timeout=120)
    assert done.returncode == 2
    assert "Ray found no room within 4 s for 4 agents (STRICT_SPREAD)" in done.stderr


def test_the_end_of_the_instance_ends_its_actors(served: Served) -> None:
    """The last of these tests."""
    served.process.send_signal(signal.SIGTERM)
    assert served.end() == 0, served.output
    assert session_members(served.process.pid) == []
    assert agents("ray-0") == agents("ray-1") == []


def agents(name: str) -> list[int]:
    """Process ids of `megainfer agent` of this name, without what it has forked."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it ended while we looked
            if "agent" in words and name in words:
                found[int(folder.name)] = parent
    return [pid for pid, parent in found.items() if parent not in found]
