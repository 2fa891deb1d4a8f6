"""Whole runs: stopped and resumed, interrupted, refused; with rewards from processes."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megainfer.errors import ConfigError
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.run.run import Run
from megainfer.rl.run.trainer import StepReport
from tests.support.rl_engine import TransformersEngine
from tests.support.rl_models import QUICK_OPTIMISER, write_problems, write_text_model

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("model"))


def config_of(folder: Path, output: Path, **sections: dict[str, Any]) -> TrainConfig:
    problems = write_problems(output.parent / "problems.jsonl")
    values: dict[str, Any] = {
        "model": str(folder),
        "data": {"train": problems, "evaluation": problems, "max_prompt_tokens": 16},
        "rollout": {"prompts": 2, "answers": 3, "max_answer_tokens": 7, "window": 3},
        "reward": {"function": "tests.support.rl_rewards:letters", "seconds": 60},
        "advantage": {"edge": 1},
        "optimiser": QUICK_OPTIMISER,
        "run": {"output": output, "steps": STEPS, "evaluate_every": 2, "save_every": 2},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return TrainConfig.of(values)


def nothing(step: int, report: StepReport) -> None:
    pass


def ran(
    config: TrainConfig,
    resume: bool = False,
    show: Callable[[int, StepReport], None] = nothing,
) -> list[str]:
    """What was said meanwhile."""
    said: list[str] = []
    with closing(Run(config, resume, TransformersEngine, show, said.append)) as run:
        run.steps()
    return said


def metrics_of(output: Path) -> list[dict[str, Any]]:
    """Without what the clock says."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: v for name, v in row.items() if not name.startswith(("seconds/", "idle/"))}
        for row in rows
    ]


def content_of(checkpoint: Path) -> dict[str, Any]:
    """Every file of it: tensors as bytes, JSON without where it was written."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        name = str(path.relative_to(checkpoint))
        if path.suffix == ".safetensors":
            found |= {f"{name}/{n}": t.numpy().tobytes() for n, t in load_file(path).items()}
        else:
            found[name] = path.read_text()
    state = json.loads(found.pop("run.json"))
    del state["config"]
    return {**found, "state": state}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    ran(config_of(folder, output))
    return output


def latest(output: Path) -> Path:
    return sorted((output / "checkpoints").iterdir())[-1]


def assert_same_run(output: Path, whole: Path) -> None:
    assert metrics_of(output) == metrics_of(whole)
    assert (output / "texts.jsonl").read_text() == (whole / "texts.jsonl").read_text()
    assert content_of(latest(output)) == content_of(latest(whole))


def test_a_run_writes_metrics_texts_and_checkpoints(whole: Path) -> None:
    rows = metrics_of(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert ["evaluation/pass@1" in row for row in rows] == [False, True, False, True]
    assert ["policy/loss" in row for row in rows] == [False, True, True, True]
    assert all(row["answers/finished"] + row["answers/unfinished"] == 6 for row in rows)
    assert [p.name for p in sorted((whole / "checkpoints").iterdir())] == [
        "step-00000002",
        "step-00000004",
    ]
    texts = [json.loads(line) for line in (whole / "texts.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "response", "answer", "reward"} == set(texts[0])
    left = {"checkpoints", "metrics.jsonl", "texts.jsonl"}
    assert {path.name for path in whole.iterdir()} == left


def test_a_run_that_is_stopped_and_resumed_is_the_undisturbed_one_to_the_bit(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    ran(config_of(folder, output, run={"steps": 2}))
    assert latest(output).name == "step-00000002"
    ran(config_of(folder, output), resume=True)
    assert_same_run(output, whole)
    said = ran(config_of(folder, output), resume=True)
    assert said == [f"all {STEPS} steps are done; a larger --run.steps goes on"]
    assert_same_run(output, whole)


def test_an_interrupt_ends_the_step_and_saves_it(folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"

    def interrupt(step: int, report: StepReport) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    said = ran(config_of(folder, output), show=interrupt)
    assert said[-1] == f"interrupted after step 3 of {STEPS}; --resume goes on"
    assert latest(output).name == "step-00000003"
    assert signal.getsignal(signal.SIGINT) is before
    ran(config_of(folder, output), resume=True)
    assert_same_run(output, whole)


def test_a_kill_costs_the_steps_since_the_last_checkpoint(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"

    def die(step: int, report: StepReport) -> None:
        if step == 3:
            raise MemoryError

    with pytest.raises(MemoryError):
        ran(config_of(folder, output), show=die)
    assert latest(output).name == "step-00000002"
    assert [row["step"] for row in metrics_of(output)] == [1, 2, 3]
    ran(config_of(folder, output), resume=True)
    assert_same_run(output, whole)


def test_what_cant_be_resumed_is_named(folder: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run, up to step-00000004; --resume goes on"):
        ran(config_of(folder, whole))
    with pytest.raises(ConfigError, match=r"--resume: run\.seed was 0 when .*, and is 1"):
        ran(config_of(folder, whole, run={"seed": 1}), resume=True)
    with pytest.raises(ConfigError, match=r"answers go on, and .* has room for 3; raise"):
        ran(config_of(folder, whole, rollout={"prompts": 1}), resume=True)
    with pytest.raises(ConfigError, match="has no checkpoint; leave it out to begin"):
        ran(config_of(folder, tmp_path / "new"), resume=True)
    config = config_of(folder, whole)
    told = config.data.train.read_text()
    config.data.train.write_text(told.replace('"answer": "c"', '"answer": "C"'))
    with pytest.raises(ConfigError, match=r"problems\.jsonl isn't what it was when the run began"):
        ran(config, resume=True)
    config.data.train.write_text(told.replace(" ", "  "))  # of the lines, not of the problems
    assert ran(config, resume=True)[-1].startswith("all 4 steps are done")


def test_two_runs_dont_write_to_one_folder(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path / "run")
    with (
        closing(Run(config, False, TransformersEngine, nothing, print)),
        pytest.raises(ConfigError, match=r"another run writes to .*run; end it"),
    ):
        Run(config, False, TransformersEngine, nothing, print)
    assert list((tmp_path / "run").iterdir()) == []


def test_bad_wishes_are_refused_before_a_step(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(ConfigError, match="are 316 together; the model's context has 256"):
        ran(config_of(folder, output, rollout={"max_answer_tokens": 300}))
    with pytest.raises(ConfigError, match=r"compute\.device 'abacus' can't be used"):
        ran(config_of(folder, output, compute={"device": "abacus"}))
    with pytest.raises(ConfigError, match="there is no module 'nowhere'"):
        ran(config_of(folder, output, reward={"function": "nowhere:f"}))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "answer": "a"}\n{"prompt"\n')
    with pytest.raises(ConfigError, match=r"broken\.jsonl, line 2 isn't JSON"):
        ran(config_of(folder, output, data={"train": broken}))
    assert list(output.iterdir()) == []


def test_problems_that_are_too_long_are_counted(folder: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    short = json.dumps({"prompt": "a", "answer": "a"})
    long.write_text(short + "\n" + json.dumps({"prompt": "a" * 99, "answer": "a"}))
    config = config_of(folder, tmp_path / "run", data={"train": long}, run={"steps": 1})
    said = ran(config)
    assert said[0] == f"{long}: 1 of 2 problems are left out, with more than 16 tokens"
    long.write_text(json.dumps({"prompt": "a" * 99, "answer": "a"}))
    other = config_of(folder, tmp_path / "other", data={"train": long})
    with pytest.raises(ConfigError, match="all 1 problems have more than 16 tokens"):
        ran(other)


def test_rewards_that_fail_are_counted_and_shown(folder: Path, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    config = config_of(
        folder,
        tmp_path / "run",
        reward={"function": "tests.support.rl_rewards:unlucky", "seconds": 60},
        rollout={"window": 7},
        run={"steps": 2},
    )
    ran(config, show=lambda step, report: reports.append(report))
    skipped = [report.skipped for report in reports]
    assert any("it raised ValueError: no luck" in reasons for reasons in skipped)
    for report in reports:
        assert report.metrics["answers/unscored"] == sum(report.skipped.values())


def test_metrics_go_to_tensorboard(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    ran(config_of(folder, output, run={"steps": 2, "tensorboard": True}))
    board = EventAccumulator(str(output / "tensorboard"))
    board.Reload()
    written = [event.value for event in board.Scalars("rollout/tokens")]
    assert written == [row["rollout/tokens"] for row in metrics_of(output)]
