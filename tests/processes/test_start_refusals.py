"""What a machine or a folder doesn't allow is a line on stderr before anything is started, never a
traceback."""

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megainfer.commands.config_file import read_options
from megainfer.errors import ConfigError
from megainfer.frontend.serving_options import ServingOptions
from tests.support.checkpoints import write_checkpoint, write_config
from tests.support.model_folders import FILES

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
PR_CAPBSET_DROP = 24


def as_anybody() -> None:
    """Root may read everything but for these two; anybody else hasn't got them to drop."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))


def little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (200 * 2**20, 200 * 2**20))


def refusal(*arguments: str | Path, before: Callable[[], None] = as_anybody, **env: str) -> str:
    """What `megainfer serve` says instead of serving."""
    command = [sys.executable, "-m", "megainfer", "serve", "--port", "0", *map(str, arguments)]
    done = subprocess.run(
        command,
        preexec_fn=before,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    return done.stderr.partition("error: ")[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_config("qwen3_moe", "gqa", tmp_path)


@pytest.fixture
def locked(tmp_path: Path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)


def test_a_folder_that_cannot_be_entered(locked: Path) -> None:
    assert "Permission denied" in refusal(locked / "model")
    assert "Permission denied" in refusal(locked)


def test_a_config_that_cannot_be_read(model: Path) -> None:
    (model / "config.json").chmod(0)
    said = refusal(model)
    assert "config.json cannot be read as JSON" in said
    assert "Permission denied" in said


def test_a_cache_that_cannot_be_entered(locked: Path) -> None:
    assert "Permission denied" in refusal(XDG_CACHE_HOME=str(locked), MEGAINFER_CACHE=str(locked))


def test_too_few_files_may_be_open(tmp_path: Path) -> None:
    said = refusal(write_checkpoint("olmoe", "mha", tmp_path), before=few_files)
    assert "may have 16 files open (ulimit -Hn), and 2 nodes with their API server need 72" in said


def test_no_memory_for_the_program_itself(model: Path) -> None:
    assert "there is no memory left; allow more (ulimit -v" in refusal(model, before=little_memory)


def aliases(path: Path) -> None:
    levels = [f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path.write_text("\n".join(["model:", "  - &a0 [x]", *levels]))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (FILES["an endless device"], "not a regular file"),
        (FILES["a pipe"], "not a regular file"),
        (FILES["a terabyte of nothing"], "bytes, at most 1048576 are read"),
        (FILES["brackets"], "can't be read|isn't YAML"),
        (FILES["no UTF-8"], "can't be read"),
        (aliases, r"aliases \(\*name\) aren't taken"),
    ],
)
def test_a_config_file_that_never_ends(
    tmp_path: Path, put: Callable[[Path], None], reason: str
) -> None:
    put(tmp_path / "file")
    with pytest.raises(ConfigError, match=reason) as error:
        read_options(tmp_path / "file")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "origin",
    [
        *("", "x", "example.com", "https://", "https://x/", "https://x/y", "HTTPS://x", "null"),
        *("https://X", "https://x y", "https://x\n", "https://x:port", "https://[::1"),
        "https://u@x",
    ],
)
def test_origins_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-origins takes"):
        ServingOptions(allowed_origins=(origin,))
    good = ("*", "https://x", "http://localhost:3000", "https://[::1]:8", "chrome-extension://abc")
    ServingOptions(allowed_origins=good)


@pytest.mark.parametrize("names", [("",), (" ",), ("a\n",), ("a" * 513,), ("a", "b", "a")])
def test_names_that_nobody_can_ask_for(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--served-model-name"):
        ServingOptions(names=names)
