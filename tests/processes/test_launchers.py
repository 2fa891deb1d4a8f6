"""Instances whose agents a launcher starts: here, by torchrun, and as Slurm would."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.processes.launched import (
    GRACE,
    OPTIONS,
    PROMPT,
    answer,
    await_health,
    await_output,
    hosts_of,
)
from tests.support.agents import write_token
from tests.support.chaos.instance import write_model
from tests.support.served import Served, run_cli, serving, session_members, stream

LONG = 300
SHORTER = 120
"""Tokens of an answer that is finished while all ends: torchrun leaves 30 seconds, however busy the
machine is."""
DRAIN = ("--drain-timeout", "90")
TOKEN = "0123456789abcdef" * 4
LOCAL = (*OPTIONS, "--launcher", "local", "--agents")
HOSTS = "waiting for {} agents at"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    """Where all nodes are the supervisor's own."""
    with serving(str(model), *OPTIONS) as served:
        return answer(served)


def children_of(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in told.split()]


def keeper_of(served: Served) -> int:
    """The child of the supervisor that has agents as children, in a process group of its own."""
    (keeper,) = [pid for pid in children_of(served.process.pid) if os.getpgid(pid) == pid]
    return keeper


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def local(model: Path) -> Iterator[Served]:
    with serving(str(model), *LOCAL, "2") as served:
        yield served


def test_a_launcher_has_nodes_on_agents_of_this_machine(local: Served, expected: list[int]) -> None:
    assert HOSTS.format(2) in local.output
    assert answer(local) == expected
    assert hosts_of(local) == {"local-0", "local-1"}


def test_an_agent_that_is_killed_is_started_again_as_the_same_host(
    local: Served, expected: list[int]
) -> None:
    agents = children_of(keeper_of(local))
    os.kill(agents[-1], signal.SIGKILL)
    await_output(local, lambda text: "was killed by SIGKILL; it is started again" in text)
    await_output(local, lambda text: "is back, at" in text)
    await_health(local)
    assert answer(local) == expected
    assert hosts_of(local) == {"local-0", "local-1"}
    assert len(children_of(keeper_of(local))) == 2


def test_an_interrupt_ends_agents_and_nodes(local: Served) -> None:
    """The last with this server."""
    local.process.send_signal(signal.SIGINT)
    assert local.end() == 0, local.output
    assert session_members(local.process.pid) == []
    assert "is lost" not in local.output.partition("is back, at")[2]


def test_whoever_keeps_agents_can_not_be_done_without(model: Path) -> None:
    with serving(str(model), *LOCAL, "1") as served:
        os.kill(keeper_of(served), signal.SIGKILL)
        assert served.end() == 1
        assert "keeps agents here was killed by SIGKILL" in served.output
        assert session_members(served.process.pid) == []


def test_a_dry_run_leaves_no_agent(model: Path) -> None:
    done = run_cli("serve", str(model), *LOCAL, "1", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert HOSTS.format(1) in done.stdout


# --- ranks ----------------------------------------------------------------------------------------


def slurm(rank: int) -> dict[str, str]:
    """What srun sets, as far as it matters."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "127.0.0.[1-2]",
        "MEGAINFER_AGENT_TOKEN": TOKEN,
    }


@pytest.fixture
def ranks(model: Path) -> Iterator[tuple[Served, Served]]:
    """As srun starts them: the same command."""
    launched = ("--launcher", "slurm", "--agents-port", str(free_port()))
    args = [str(model), *OPTIONS, *launched, *DRAIN]
    agent = Served(args, "joined as host", environment=slurm(1), wait=False)
    supervisor = Served(args, environment=slurm(0), wait=False)
    try:
        assert supervisor.wait_until_ready(), supervisor.output + agent.output
        yield supervisor, agent
    finally:
        supervisor.kill()
        agent.kill()


def test_tasks_of_slurm_are_a_supervisor_and_agents(
    ranks: tuple[Served, Served], expected: list[int]
) -> None:
    """Told to end all at once, as scancel does, they finish what was begun."""
    supervisor, agent = ranks
    assert answer(supervisor) == expected
    name = socket.gethostname()[:50]
    assert hosts_of(supervisor) == {f"{name}-0", f"{name}-1"}
    events = stream(supervisor, PROMPT, LONG, temperature=0)
    begun = [next(events)]
    agent.process.send_signal(signal.SIGTERM)
    supervisor.process.send_signal(signal.SIGTERM)
    last = [*begun, *events][-1]
    assert last["choices"][0]["finish_reason"] == "length", last
    assert supervisor.end() == 0, supervisor.output
    assert agent.end() == 0, agent.output
    assert "the instance has ended" in agent.output


def test_an_agent_without_an_instance_ends_at_once(model: Path) -> None:
    """However long it would go on for one."""
    args = [str(model), "--launcher", "slurm", "--agents-port", str(free_port())]
    agent = Served(args, "never", environment=slurm(1), wait=False)
    try:
        await_agent(agent)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.end() == 0, agent.output
    finally:
        agent.kill()


def await_agent(agent: Served) -> None:
    """Until it heeds signals, in the process that is apart."""
    deadline = monotonic() + GRACE
    while not any(map(heeds, children_of(agent.process.pid))):
        assert monotonic() < deadline, agent.output
        sleep(0.05)  # nobody is told


def heeds(pid: int) -> bool:
    """Whether this process catches SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_ranks_of_torchrun_are_a_supervisor_and_agents(
    model: Path, expected: list[int], tmp_path: Path
) -> None:
    """Told to end all at once, each with its whole process group, they finish what was begun."""
    token = write_token(tmp_path)
    args = [
        *(str(model), *OPTIONS, "--launcher", "torchrun", "--token-file", str(token)),
        *("--agents-port", str(free_port())),
    ]
    meeting = ("--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    hosts = [
        Served(
            args,
            program="torch.distributed.run",
            wait=False,
            before=[
                *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank), *meeting),
                *("-m", "megainfer"),
            ],
        )
        for rank in range(2)
    ]
    supervisor, agent = hosts
    ranks: list[int] = []
    try:
        assert supervisor.wait_until_ready(), supervisor.output + agent.output
        ranks = [rank for host in hosts for rank in children_of(host.process.pid)]
        assert answer(supervisor) == expected
        assert len(hosts_of(supervisor)) == 2
        events = stream(supervisor, PROMPT, SHORTER, temperature=0)
        begun = [next(events)]
        for host in hosts:
            host.process.send_signal(signal.SIGTERM)
        last = [*begun, *events][-1]
        assert last["choices"][0]["finish_reason"] == "length", last
        for host in hosts:
            host.end()
        assert "the instance has ended" in agent.output
        assert [rank for rank in ranks if session_members(rank)] == []
    finally:
        for session in (*ranks, *(host.process.pid for host in hosts)):
            for pid, _ in session_members(session):
                os.kill(pid, signal.SIGKILL)
        for host in hosts:
            host.kill()
