"""Who starts agents: roles from an environment, what is missing named, and what a launcher says."""

import os
import select
import socket
import sys
from pathlib import Path

import pytest

from megainfer.commands import launching
from megainfer.commands.agent_options import model_source
from megainfer.commands.host_options import HostOptions
from megainfer.commands.launcher_options import Launcher, LauncherOptions
from megainfer.commands.launching import Launching
from megainfer.errors import ConfigError, ModelError, NodeDied
from megainfer.hosts.listening import Address
from megainfer.hosts.token import VARIABLE, find_token, make_token
from megainfer.launchers.keeper import cores_of
from megainfer.launchers.process import LauncherProcess
from megainfer.launchers.ranks import Rank, first_host, slurm_rank, torchrun_rank
from megainfer.launchers.words import Failed, Here, Said, Words, say
from megainfer.model_folder.demo.model import DEMO_MODEL_NAME
from megainfer.model_folder.resolve import ModelSource

TOKEN = "0123456789abcdef" * 4
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "3",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "head",
}
SLURM = {
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "gpu[04-07],head",
}


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def of(launcher: Launcher, hosts: HostOptions | None = None, **more: object) -> Launching:
    options = LauncherOptions(launcher, **more)  # type: ignore[arg-type]  # of any type
    return Launching(hosts or HostOptions(), options)


# --- roles ----------------------------------------------------------------------------------------


def test_roles_are_in_the_environment() -> None:
    assert torchrun_rank(TORCHRUN) == Rank(1, 3, "head")
    assert slurm_rank(SLURM) == Rank(2, 4, "gpu04")
    step = {**SLURM, "SLURM_STEP_NODELIST": "gpu[06-07]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert slurm_rank(step).leader == "gpu06"


@pytest.mark.parametrize("name", sorted(TORCHRUN.keys() - {"LOCAL_RANK"}))
def test_what_torchrun_has_not_set_is_named(name: str) -> None:
    without = {key: value for key, value in TORCHRUN.items() if key != name}
    with pytest.raises(ConfigError, match=f"finds no {name} in the environment: .*torchrun"):
        torchrun_rank(without)


@pytest.mark.parametrize("name", SLURM)
def test_what_slurm_has_not_set_is_named(name: str) -> None:
    without = {key: value for key, value in SLURM.items() if key != name}
    with pytest.raises(ConfigError, match=f"finds no {name} in the environment: .*srun"):
        slurm_rank(without)


@pytest.mark.parametrize("text", ["one", "-1", ""])
def test_a_rank_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="RANK"):
        torchrun_rank({**TORCHRUN, "RANK": text})


@pytest.mark.parametrize("more", [{"SLURM_LOCALID": "1"}, {"SLURM_STEP_TASKS_PER_NODE": "1,2(x3)"}])
def test_one_rank_a_host(more: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"one rank a host.* there are 2"):
        slurm_rank({**SLURM, **more})
    with pytest.raises(ConfigError, match=r"one rank a host.* there are 8"):
        torchrun_rank({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("n[001-128]", "n001"),
        ("n[7,9-12]", "n7"),
        ("rack[1-2]n[03,04]-ib,x", "rack1n03-ib"),
        ("10.0.0.[7-9]", "10.0.0.7"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_a_node_list_without_a_host_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no host"):
        first_host(" ")


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", [Launcher.LOCAL, Launcher.RAY])
def test_how_many_agents_has_to_be_said(launcher: Launcher) -> None:
    with pytest.raises(ConfigError, match=f"--launcher {launcher} needs --agents NUMBER"):
        of(launcher).reception()


def test_ray_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from megainfer.launchers.on_ray import process

    monkeypatch.setattr(process, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'megainfer\[ray\]'"):
        of(Launcher.RAY, HostOptions(agents=2)).reception()


def test_what_an_agent_needs_of_ray() -> None:
    options = LauncherOptions(
        Launcher.RAY, ray_cpus=4, ray_memory=2**30, ray_resource=["accelerator_type:H100=0.5"]
    )
    assert options.ray_resources() == {
        "CPU": 4.0,
        "memory": 2.0**30,
        "accelerator_type:H100": 0.5,
    }
    with pytest.raises(ConfigError, match="--ray-resource must be such as"):
        LauncherOptions(ray_resource=["disk"]).ray_resources()
    with pytest.raises(ConfigError, match="--ray-cpus 0 leaves nothing"):
        LauncherOptions(ray_cpus=0).ray_resources()


def test_ranks_need_a_token_that_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"rank 0 has no token.*{VARIABLE}"):
        of(Launcher.TORCHRUN).reception()
    with pytest.raises(ConfigError, match="rank 1 has no token"):
        of(Launcher.TORCHRUN).run_agent(Rank(1, 2, "127.0.0.1"), print)


def test_as_many_agents_as_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    launched = of(Launcher.TORCHRUN, HostOptions(agents=2))
    assert launched.agents == 3
    with pytest.raises(ConfigError, match="--agents 2, but 3 ranks were started"):
        launched.reception()


def test_a_host_that_only_itself_knows_as_loopback_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Debian has its own name in /etc/hosts."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ConfigError, match=r"head, is 127\.0\.1\.1.*--listen-agents"):
        of(Launcher.TORCHRUN)._join(Rank(0, 2, "head"))
    assert of(Launcher.TORCHRUN)._join(Rank(0, 1, "head")).host == "127.0.1.1"
    named = of(Launcher.TORCHRUN, HostOptions(listen_agents="10.0.0.1:7000"))
    assert named._join(Rank(0, 2, "head")) == Address("10.0.0.1", 7000)


def test_a_leader_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match="rank 0, head, isn't known here"):
        of(Launcher.SLURM)._join(Rank(1, 2, "head"))


def test_agents_fetch_themselves_what_is_no_folder(tmp_path: Path) -> None:
    def fetched(model: str | None, revision: str | None = None) -> ModelSource | None:
        return Launching(HostOptions(), model=ModelSource(model, revision))._fetched()

    assert fetched(str(tmp_path)) is None
    assert fetched("owner/name", "v1") == ModelSource("owner/name", "v1")
    assert fetched(None) == ModelSource()


def test_on_ray_agents_are_told_what_to_fetch(tmp_path: Path) -> None:
    def told(model: str | None, revision: str | None = None) -> list[str]:
        options = LauncherOptions(Launcher.RAY, ray_memory=2**30)
        hosts = HostOptions(agents=2, token_file=tmp_path / "token")
        return Launching(hosts, options, ModelSource(model, revision))._arguments()

    assert told("owner/name", "v1")[-4:] == ["--model", "owner/name", "--revision", "v1"]
    assert told(None)[-2:] == ["--model", DEMO_MODEL_NAME]
    assert "--model" not in told(str(tmp_path))
    assert TOKEN not in told(None)
    pairs = dict(zip(told(None)[::2], told(None)[1::2], strict=True))
    assert pairs["--token-file"] == str(tmp_path / "token")
    assert pairs["--memory"] == str(2**30)


def test_an_agents_model_may_be_the_demo_or_of_the_hub() -> None:
    assert model_source(None, None) is None
    assert model_source(DEMO_MODEL_NAME, None) == ModelSource()
    assert model_source("owner/name", "main") == ModelSource("owner/name", "main")
    with pytest.raises(ConfigError, match="--revision is for a hub id"):
        model_source(None, "main")
    wrong = model_source("nowhere", None)
    assert wrong is not None
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        assert wrong.place


# --- the token ------------------------------------------------------------------------------------


def test_a_token_of_the_environment_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f" {TOKEN}\n")
    assert find_token(None) == TOKEN.encode()
    assert VARIABLE not in os.environ
    assert find_token(None) is None


def test_a_token_file_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN[::-1])
    path.chmod(0o600)
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert find_token(path) == TOKEN[::-1].encode()
    assert VARIABLE not in os.environ


def test_a_short_token_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN[:31])
    with pytest.raises(ConfigError, match=f"{VARIABLE} has 31 characters"):
        find_token(None)


def test_new_tokens_differ_and_are_long_enough() -> None:
    first, second = make_token(), make_token()
    assert first != second
    assert len(first) >= 32


# --- what a launcher's process says ---------------------------------------------------------------


def spawned(code: str) -> tuple[int, int]:
    """Process id and reading end of a process that runs this with `pipe` to write to."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-c", f"import os; pipe = {writer}; {code}"], os.environ
    )
    os.close(writer)
    return pid, reader


def test_words_come_whole_however_they_are_cut() -> None:
    reader, writer = os.pipe()
    words = Words(reader)
    assert words.read() == []
    say(writer, Said("one"))
    os.write(writer, b'{"type":"Here","addr')
    assert words.read() == [Said("one")]
    os.write(writer, b'ess":"10.0.0.1"}\n')
    say(writer, Failed("two"))
    assert words.read() == [Here("10.0.0.1"), Failed("two")]
    assert not words.ended
    os.close(writer)
    assert words.read() == []
    assert words.ended
    words.close()


def test_what_a_launcher_has_said_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    launcher = LauncherProcess("it", os.getpid(), reader)  # nobody's child: it isn't asked for
    say(writer, Here("10.0.0.1"))
    monkeypatch.setattr(select, "select", pytest.fail)
    assert launcher.address(30.0) == "10.0.0.1"
    launcher.close()
    os.close(writer)


def test_a_launcher_that_fails_says_why() -> None:
    word = '{"type":"Failed","reason":"no room"}\\n'
    launcher = LauncherProcess("it", *spawned(f"os.write(pipe, b'{word}')"))
    with pytest.raises(NodeDied, match="no room"):
        launcher.address(30.0)
    with pytest.raises(NodeDied, match="no room"):
        launcher.check()
    launcher.end(10.0)
    launcher.close()


def test_a_launcher_that_dies_is_noticed() -> None:
    launcher = LauncherProcess("the launcher", *spawned("os.kill(os.getpid(), 9)"))
    with pytest.raises(NodeDied, match="the launcher was killed by SIGKILL, and its agents"):
        launcher.address(30.0)
    launcher.close()


def test_a_launcher_that_does_not_answer_is_waited_for_within_bounds() -> None:
    launcher = LauncherProcess("the launcher", *spawned("import time; time.sleep(600)"))
    with pytest.raises(NodeDied, match=r"has not reached its cluster within 0\.2 s"):
        launcher.address(0.2)
    launcher.end(0.2)
    with pytest.raises(ChildProcessError):
        os.waitpid(launcher.pid, os.WNOHANG)
    launcher.close()


def test_agents_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6, 7, 9})
    assert [cores_of(agent, 2) for agent in range(2)] == [[4, 6, 9], [5, 7]]
    assert cores_of(3, 6) == [4, 5, 6, 7, 9]


def test_a_name_is_of_the_machine_and_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "n" * 80)
    assert launching._name_of(Rank(12, 16, "head")) == "n" * 50 + "-12"
