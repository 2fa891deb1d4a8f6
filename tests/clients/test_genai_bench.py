"""genai-bench, a load generator."""

import json
from pathlib import Path

import pytest

from tests.clients.documented import documented_command

REQUIREMENTS = ["genai-bench>=0.0.5,<0.1"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_genai_bench(served, python_environment, model_folder, tmp_path: Path) -> None:
    program, *args = [
        word.replace("MODEL", str(model_folder))
        for word in documented_command("genai-bench", served.url)
    ]
    folders = ["--experiment-base-dir", str(tmp_path), "--log-dir", str(tmp_path)]
    python_environment.run(program, *args, *folders, cwd=tmp_path)
    (path,) = tmp_path.rglob("*_concurrency_4_*.json")
    measured = json.loads(path.read_text())["aggregated_metrics"]
    assert measured["num_error_requests"] == 0
    assert measured["num_completed_requests"] > 0
    assert measured["stats"]["ttft"]["mean"] > 0
