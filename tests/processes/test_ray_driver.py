"""The driver of Ray and what it says, with a stand-in for Ray: see tests/support/fake_ray. The real
one is asked in test_ray.py."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from megainfer.errors import NodeDied
from megainfer.hosts.listening import Address
from megainfer.hosts.reception import Reception
from megainfer.launchers.on_ray.process import RayProcess
from megainfer.launchers.on_ray.wish import RayStart, RayWish

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4
SECONDS = 100.0
Driven = Callable[..., RayProcess]


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driven]:
    folders = [str(ROOT / "tests/support/fake_ray"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    monkeypatch.setenv("FAKE_RAY_NODES", "2")
    started: list[RayProcess] = []

    def drive(agents: int = 2, *arguments: str) -> RayProcess:
        wish = RayWish(
            parent=os.getpid(),
            address="auto",
            agents=agents,
            resources={"CPU": 1.0},
            strategy="STRICT_SPREAD",
            seconds=1.0,
            arguments=["--join-timeout", "60", *arguments],
        )
        started.append(RayProcess(wish))
        return started[-1]

    yield drive
    for process in started:
        process.end(0.0)
        process.close()


@pytest.fixture
def reception() -> Iterator[Reception]:
    reception = Reception.open(Address("127.0.0.1", 0), TOKEN.encode(), lease=60.0)
    yield reception
    reception.close()


def failure_of(process: RayProcess) -> str:
    deadline = monotonic() + SECONDS
    while monotonic() < deadline:
        try:
            process.check()
        except NodeDied as error:
            return str(error)
        sleep(0.05)  # its pipe is polled by a supervisor, of which there is none
    raise AssertionError("it says nothing")


def test_agents_join_from_their_nodes_and_end_with_the_instance(
    driven: Driven, reception: Reception
) -> None:
    process = driven()
    assert process.address(SECONDS) == "127.0.0.1"
    reception.launcher = process
    process.start(RayStart(str(reception.address), TOKEN))
    hosts = reception.gather(2, SECONDS, lambda text: None)
    assert {host.name: host.address for host in hosts} == {
        "ray-0": "127.0.0.1",
        "ray-1": "127.0.0.2",
    }
    reception.dismiss()
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # it has been reaped
    assert process._status == 0


def test_an_agents_own_error_is_told(driven: Driven, reception: Reception) -> None:
    process = driven(1, "--memory", "nonsense")
    process.address(SECONDS)
    process.start(RayStart(str(reception.address), TOKEN))
    told = failure_of(process)
    assert told.startswith("the agent of host ray-0 ended with status 2:")
    assert "--memory" in told


def test_too_few_nodes_are_told(driven: Driven) -> None:
    process = driven(3)
    process.address(SECONDS)
    process.start(RayStart("127.0.0.1:1", TOKEN))
    told = failure_of(process)
    assert "Ray found no room within 1 s for 3 agents (STRICT_SPREAD) with CPU 1 each" in told
    assert "127.0.0.2: CPU 1, GPU 0, memory 0" in told


def test_a_cluster_that_is_not_there_is_told(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAKE_RAY_NODES")
    process = driven()
    with pytest.raises(NodeDied, match=r"no Ray cluster at --ray-address auto.*`ray start --head`"):
        process.address(SECONDS)


def test_a_driver_that_is_killed_is_noticed(driven: Driven) -> None:
    process = driven()
    process.address(SECONDS)
    os.kill(process.pid, signal.SIGKILL)
    assert "the driver of Ray (--ray-address auto) was killed by SIGKILL" in failure_of(process)
