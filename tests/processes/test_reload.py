"""SIGHUP: keys and limits are read again while the server goes on."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.served import END_SECONDS, Served, serving

FIRST, SECOND = "the-first-key-0123", "the-second-key-0123"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("olmoe", "mha", tmp_path_factory.mktemp("model"))


def status(served: Served, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{served.url}/v1/models", headers=headers, timeout=20).status_code


def hang_up(served: Served, until: str) -> None:
    """Send SIGHUP, and wait until the log says this."""
    os.kill(served.process.pid, signal.SIGHUP)
    deadline = time.monotonic() + END_SECONDS
    while until not in served.output:
        assert time.monotonic() < deadline, served.output
        time.sleep(0.02)


def test_keys_and_limits_are_read_again(folder: Path, tmp_path: Path) -> None:
    keys, config = tmp_path / "keys", tmp_path / "serve.yaml"
    keys.write_text(f"{FIRST}\n")
    config.write_text("max-queued-requests: 5\n")
    args = ("--api-key-file", str(keys), "--config", str(config), "--kv-cache-memory", "16MiB")
    with serving(str(folder), *args) as served:
        assert (status(served, FIRST), status(served, SECOND)) == (200, 401)

        keys.write_text(f"{SECOND}\n")
        config.write_text("max-queued-requests: 0\nrequest-timeout: 0.000001\n")
        hang_up(served, "keys and limits were read again")
        while status(served, SECOND) != 200:  # said by the supervisor, done by the API server
            time.sleep(0.02)
        assert status(served, FIRST) == 401
        body = {"prompt": [1, 2, 3], "max_tokens": 4}
        headers = {"Authorization": f"Bearer {SECOND}"}
        answer = httpx.post(f"{served.url}/v1/completions", json=body, headers=headers, timeout=20)
        assert answer.status_code == 503
        assert "the longest that one may take" in answer.json()["error"]["message"]

        keys.write_text("# nobody\n")
        hang_up(served, "holds no key; write one a line")
        assert status(served, SECOND) == 200  # nothing has changed
