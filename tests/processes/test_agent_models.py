"""A model that agents fetch themselves: once a host, and the commit that is served."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megainfer.agent.attendant import _check_commit
from megainfer.errors import ModelError
from tests.support.agents import write_token
from tests.support.chaos.instance import write_model
from tests.support.fake_hub import COMMIT, REPOSITORY, fake_hub

AGENTS = 2
END_SECONDS = 90.0


def test_agents_of_one_host_fetch_a_model_once(tmp_path: Path) -> None:
    """Before they join; here there is nobody to be joined, and they end with that."""
    token, cache, folder = write_token(tmp_path), tmp_path / "cache", tmp_path / "model"
    folder.mkdir()
    with fake_hub(write_model(folder)) as hub:
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
        }
        agents = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "megainfer", "agent", "--join", "127.0.0.1:1"),
                    *("--join-timeout", "0", "--token-file", str(token), "--model", REPOSITORY),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(AGENTS)
        ]
        told = [agent.communicate(timeout=END_SECONDS)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [2] * AGENTS, told
        assert all("no supervisor at 127.0.0.1:1" in text for text in told), told
        (weights,) = [name for name in hub.files if name.endswith(".safetensors")]
        assert hub.fetched[weights] == 1
        (fetched,) = cache.rglob(f"snapshots/{COMMIT}")
        assert (fetched / weights).read_bytes() == hub.files[weights]


def test_another_commit_of_the_model_is_refused() -> None:
    here = Path("/here/models--somebody--model/snapshots")
    there = Path("/there/models--somebody--model/snapshots")
    _check_commit(here / COMMIT, there / COMMIT)
    _check_commit(Path("/somewhere/model"), there / COMMIT)
    with pytest.raises(ModelError, match=f"is commit other of the model, and {COMMIT} is served"):
        _check_commit(here / "other", there / COMMIT)
