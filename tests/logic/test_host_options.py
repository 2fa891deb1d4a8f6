"""The options of several hosts, and the token's file: what is refused, by name."""

from math import inf, nan
from pathlib import Path

import pytest
import typer

from megainfer.cli import app
from megainfer.commands import serve
from megainfer.commands.host_options import HostOptions, parse_address
from megainfer.commands.launching import Launching
from megainfer.config import EngineConfig
from megainfer.errors import ConfigError, NodeDied
from megainfer.frontend.serving_options import ServingOptions
from megainfer.hosts.token import m2n_key, read_token
from megainfer.model_folder.resolve import ModelSource

TOKEN = "0123456789abcdef" * 4


def write(path: Path, text: str = TOKEN, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_is_what_the_file_has_without_its_end_of_line(tmp_path: Path) -> None:
    assert read_token(write(tmp_path / "token", TOKEN + "\n")) == TOKEN.encode()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_token_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "token", mode=mode)
    with pytest.raises(ConfigError, match=f"open to others \\(mode {mode:o}\\); chmod 600 it"):
        read_token(path)


def test_a_token_that_is_short_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 31 characters; make one of at least 32"):
        read_token(write(tmp_path / "token", TOKEN[:31]))
    with pytest.raises(ConfigError, match="nowhere can't be read"):
        read_token(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="can't be read"):
        read_token(tmp_path)


def test_each_instance_has_a_key_of_its_own_for_m2n() -> None:
    keys = {m2n_key(token, name) for token in (b"one", b"other") for name in ("a", "b")}
    assert len(keys) == 4
    assert m2n_key(b"one", "a") == m2n_key(b"one", "a")


def test_a_model_is_fetched_before_agents_join(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They would count a supervisor as lost that says nothing while it fetches."""
    fetched: list[ModelSource] = []
    monkeypatch.setattr(serve, "prepare", fetched.append)
    wish, options = EngineConfig("somebody/model"), ServingOptions()
    hosts = Launching(HostOptions(1, "127.0.0.1:0", write(tmp_path / "token"), agents_timeout=0.0))
    with pytest.raises(NodeDied, match="0 of 1 agents joined"):
        serve._serve(wish, options, hosts, "127.0.0.1", 0, False, reread=pytest.fail)
    assert fetched == [ModelSource("somebody/model", wish.revision)]


@pytest.mark.parametrize("text", ["10.0.0.1", ":7300", "10.0.0.1:", "[::1:7300", "a:99999"])
def test_an_address_without_a_host_or_a_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--join must be such as"):
        parse_address(text, "--join")


def test_agents_need_a_place_to_join_and_a_token(tmp_path: Path) -> None:
    token = write(tmp_path / "token")
    for options in (
        HostOptions(agents=1, token_file=token),
        HostOptions(agents=1, listen_agents="127.0.0.1:0"),
    ):
        with pytest.raises(ConfigError, match="--agents 1 needs --listen-agents"):
            options.reception()
    reception = HostOptions(1, "127.0.0.1:0", token).reception()
    assert reception is not None
    reception.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (HostOptions(listen_agents="127.0.0.1:0"), "--listen-agents is for nodes on other hosts"),
        (HostOptions(place=["expert.0=left"]), "--place is for nodes on other hosts"),
        (HostOptions(load_from_peer=True), "--load-from-peer is for nodes on other hosts"),
        (HostOptions(tls_keyfile=Path("k")), "--tls-keyfile is for nodes on other hosts"),
        (HostOptions(agents=1, tls_cafile=Path("a")), "give --tls-certfile and --tls-keyfile as"),
        (HostOptions(agents=-1), "--agents must be 0 or more, not -1"),
        (HostOptions(agents=1, agent_lease=1.0), "--agent-lease must be at least 2 s, not 1"),
        (HostOptions(agents=1, agent_lease=inf), "--agent-lease must be seconds from 0 to 86400"),
        (HostOptions(agents=1, agents_timeout=nan), "--agents-timeout must be seconds from 0"),
        (HostOptions(agents=1, place=["expert0"]), "--place must be such as"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: HostOptions, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        options.reception()


def test_agents_that_are_launched_elsewhere_have_the_same_tls() -> None:
    certificate, key, authority = map(Path, ("/a/cert", "/a/key", "/a/ca"))
    options = HostOptions(agents=1, tls_certfile=certificate, tls_keyfile=key, tls_cafile=authority)
    words = Launching(options)._arguments()
    for flag, path in (("certfile", "cert"), ("keyfile", "key"), ("cafile", "ca")):
        assert words[words.index(f"--tls-{flag}") + 1] == f"/a/{path}"
    assert "--tls-certfile" not in Launching(HostOptions(agents=1))._arguments()


@pytest.mark.parametrize("words", [["agent", "--join", "10.0.0.1:7300"], ["serve"]])
def test_numbers_of_gpus_are_one_word(words: list[str]) -> None:
    """What follows them is the next option."""
    name, *rest = words
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]  # a group
    given = command.make_context(name, ["--gpus", "0,0,3", "--log-level", "debug", *rest]).params
    assert (given["gpus"], given["log_level"]) == ((0, 0, 3), "debug")
