"""aiperf, a load generator."""

import json
from pathlib import Path

import pytest

from tests.clients.documented import documented_command

REQUIREMENTS = ["aiperf>=0.13,<0.14"]
REQUESTS = 100  # as documented


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_aiperf(served, python_environment, model_folder, tmp_path: Path) -> None:
    program, *args = [
        word.replace("MODEL", str(model_folder))
        for word in documented_command("aiperf", served.url)
    ]
    quiet = ["--ui", "none", "--artifact-dir", str(tmp_path)]
    # Offline it takes a folder for the name of a hub's model.
    online = {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""}
    python_environment.run(program, *args, *quiet, cwd=tmp_path, env=online)
    (path,) = tmp_path.rglob("profile_export_aiperf.json")
    measured = json.loads(path.read_text())
    assert measured["request_count"]["avg"] == REQUESTS
    assert not measured.get("error_summary"), measured["error_summary"]
    assert measured["time_to_first_token"]["avg"] > 0
    assert measured["inter_token_latency"]["avg"] > 0
