"""Whatever a model's folder holds, looking into it ends soon, in a plan or in an error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megainfer.errors import ModelError
from megainfer.models.registry import load_spec
from tests.support.checkpoints import FAMILIES, write_config
from tests.support.scripted_server import byte_level_backend

QUICK = "deepseek_v3"
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("family", "every"),
    [(QUICK, 9), *[pytest.param(f, 1, marks=pytest.mark.slow) for f in FAMILIES]],
)
def test_no_value_and_no_file_brings_down_who_looks(
    tmp_path: Path, family: str, every: int
) -> None:
    write_config(family, next(iter(FAMILIES[family])), tmp_path)
    byte_level_backend().save(str(tmp_path / "tokenizer.json"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.model_folders", str(tmp_path), str(every)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *problems, told = done.stdout.splitlines()
    assert not problems
    assert int(told.removeprefix("tried ")) > 1000 / every


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, but no model has more"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but no model has more"),
        ({"num_experts": 10**9}, "num_experts is 1000000000, but no model has more than 16384"),
        ({"num_hidden_layers": 2000, "num_experts": 10**4}, "20000000 experts in all layers"),
    ],
)
def test_plans_have_a_size(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    write_config("qwen3_moe", "gqa", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes, "layer_types": None}))
    with pytest.raises(ModelError, match=message):
        load_spec(tmp_path)
