"""Several ranks train as one does."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from megainfer.errors import ConfigError
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.ranks.ranks import Ranks, joined
from megainfer.rl.run.run import Run
from tests.support.forked import TRAINING, importing
from tests.support.rl_engine import TransformersEngine
from tests.support.rl_models import QUICK_OPTIMISER, write_problems, write_text_model
from tests.support.served import run_module

RANKS, SECONDS = 2, 200.0
PROGRAM = "tests.support.rl_ranks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("model"))


def values_of(folder: Path, output: Path, pass_tokens: int, steps: int) -> dict[str, Any]:
    problems = write_problems(output.parent / "problems.jsonl")
    return {
        "model": str(folder),
        "data": {"train": str(problems), "max_prompt_tokens": 16},
        "rollout": {"prompts": 3, "answers": 3, "max_answer_tokens": 9, "window": 4},
        "reward": {"function": "tests.support.rl_rewards:letters", "seconds": 60},
        "advantage": {"edge": 1},
        "optimiser": QUICK_OPTIMISER,
        "compute": {"pass_tokens": pass_tokens, "checkpointing": True},
        "run": {"output": str(output), "steps": steps, "save_every": 2, "keep": 9},
    }


def alone(values: dict[str, Any], resume: bool = False) -> None:
    config = TrainConfig.of(values)
    with closing(Run(config, resume, TransformersEngine, lambda *_: None, print)) as run:
        run.steps()


@pytest.fixture(scope="module", autouse=True)
def _ranks_are_forked_from_what_has_imported_it_all() -> Iterator[None]:
    with importing(*TRAINING):
        yield


def by_torchrun(program: str, *words: str, ranks: int = RANKS) -> str:
    """What all of them have printed."""
    told = ["--standalone", f"--nproc-per-node={ranks}", "-m", program, *words]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "COLUMNS": "200"}
    finished = run_module("torch.distributed.run", told, environment, SECONDS)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def by_ranks(program: str, *words: str, ranks: int = RANKS) -> str:
    """Without torchrun's new interpreters: told what it tells, they meet as its ranks do."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(ranks)}
    told |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    told |= {"COLUMNS": "200"}

    def run(rank: int) -> str:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        finished = run_module(program, words, {**os.environ, **told, **own}, SECONDS)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    with ThreadPoolExecutor(ranks) as pool:
        return "".join(pool.map(run, range(ranks)))


def written(values: dict[str, Any], folder: Path) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return str(path)


def rows_of(output: Path) -> list[dict[str, float]]:
    """Without what the clock says."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds/", "idle/")
    return [{n: v for n, v in row.items() if not n.startswith(clocks)} for row in rows]


def assert_alike(output: Path, other: Path, step: int) -> None:
    """Metrics, and all weights and optimisers' states after this step."""
    for row, own in zip(rows_of(other), rows_of(output), strict=True):
        assert own == pytest.approx(row, rel=1e-3, abs=1e-5)
    folders = [path / "checkpoints" / f"step-{step:08d}" for path in (output, other)]
    files = [sorted(p.relative_to(f) for p in f.rglob("*.safetensors")) for f in folders]
    assert files[0] == files[1]
    assert len(files[0]) == 5  # both models, the head, both optimisers
    for name in files[0]:
        one, two = load_file(folders[0] / name), load_file(folders[1] / name)
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(tensor, two[key], rtol=1e-3, atol=2e-5)


def test_ranks_of_torchrun_are_joined(tmp_path: Path) -> None:
    by_torchrun("tests.support.rl_joined", str(tmp_path))
    told = sorted(json.loads(path.read_text()) for path in tmp_path.iterdir())
    assert told == [[0, 2, 0, 3.0], [1, 2, 1, 3.0]]


@pytest.mark.slow
def test_ranks_of_torchrun_train_as_one(folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone(values_of(folder, one, 40, 4))
    by_torchrun(PROGRAM, written(values_of(folder, two, 40, 4), tmp_path))
    assert_alike(one, two, 4)


def test_two_ranks_train_as_one_and_either_goes_on_with_the_others(
    folder: Path, tmp_path: Path
) -> None:
    """Sums of many passes are added up in another order, else nothing differs."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone(values_of(folder, one, 40, 4))
    by_ranks(PROGRAM, written(values_of(folder, two, 40, 4), tmp_path))
    assert_alike(one, two, 4)
    mixed = tmp_path / "mixed"
    by_ranks(PROGRAM, written(values_of(folder, mixed, 40, 2), tmp_path))
    alone(values_of(folder, mixed, 40, 3), resume=True)
    by_ranks(PROGRAM, written(values_of(folder, mixed, 40, 4), tmp_path), "--resume")
    assert_alike(mixed, one, 4)


@pytest.mark.parametrize(
    "run", [by_ranks, pytest.param(by_torchrun, marks=pytest.mark.slow)], ids=["told", "torchrun"]
)
def test_the_command_of_several_ranks(
    folder: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    """Its rollouts come from nodes, which the first rank starts."""
    found = []
    for ranks in (1, RANKS):
        output = tmp_path / str(ranks)
        values = values_of(folder, output, 40, 3)
        values["rollout"]["engine"] = {"micro_batches": 1, "max_model_len": 64}
        words = ("megainfer", "rl", "train", written(values, tmp_path))
        halfway = ("--run.steps", "2") if ranks == RANKS else ()
        printed = run(*words, *halfway, ranks=ranks)
        assert printed.count("step 1/") == 1, "the first rank alone tells"
        if halfway:
            run(*words, "--resume", ranks=ranks)
        found.append(rows_of(output))
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_who_computes_what() -> None:
    parts = list("abcde")
    dealt = [Ranks(rank, 3).deal(parts) for rank in range(3)]
    assert [len(own) for own in dealt] == [2, 2, 2]
    assert sorted(part for own in dealt for part, weight in own if weight) == parts
    assert Ranks().deal(parts) == [(part, 1) for part in parts]
    assert [Ranks(rank, 2).deal([]) for rank in range(2)] == [[], []]


def test_ranks_that_cant_be_are_named() -> None:
    message = r"RANK and LOCAL_RANK aren't .*start with torchrun"
    half = joined("cpu", {"WORLD_SIZE": "2", "RANK": "0"})
    with pytest.raises(ConfigError, match=message), half:
        pass
    with pytest.raises(ConfigError, match=r"'cuda:0' is one device for 2 ranks: leave out"):
        Ranks(0, 2).device("cuda:0")
