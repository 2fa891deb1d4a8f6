"""The configuration: every key has a check and a flag, and a mistake is named."""

import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from megainfer.commands.rl import train
from megainfer.commands.rl.flags import flags_of, merged
from megainfer.commands.rl.report import StepLines
from megainfer.errors import ConfigError
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.run.trainer import StepReport

LEAST: Mapping[str, Any] = {
    "model": "some/model",
    "data": {"train": "problems.jsonl"},
    "reward": {"function": "numeric"},
    "run": {"output": "runs/one"},
}


def config_of(**values: Any) -> TrainConfig:
    return TrainConfig.of({**LEAST, **values})


def test_the_papers_numbers_are_the_defaults() -> None:
    config = config_of()
    assert (config.algorithm, config.window) == ("tppo", 8192)
    assert (config.rollout.max_answer_tokens, config.rollout.pool) == (24576, 8192)
    loss, advantage, optimiser = config.loss, config.advantage, config.optimiser
    assert (loss.clip_low, loss.clip_high, loss.dual_clip) == (0.2, 0.28, 10.0)
    assert (loss.value_clip_low, loss.value_clip_high, loss.language_weight) == (0.5, 0.6, 0.1)
    assert (advantage.gamma, advantage.edge, advantage.clamp) == (1.0, 8, 10.0)
    assert (advantage.lambda_alpha, advantage.lambda_least) == (0.05, 0.95)
    assert (optimiser.policy_rate, optimiser.value_rate) == (8e-7, 2e-6)
    assert (optimiser.value_first, optimiser.policy_updates) == (10, 1)


@pytest.mark.parametrize(("algorithm", "window"), [("tppo", 100), ("ppo", 500), ("grpo", 500)])
def test_only_tppo_cuts_answers(algorithm: str, window: int) -> None:
    rollout = {"window": 100, "max_answer_tokens": 500}
    config = config_of(algorithm=algorithm, rollout=rollout)
    assert config.window == window
    assert config.has_value_model == (algorithm != "grpo")
    assert config_of(rollout={**rollout, "window": 900}).window == 500
    short = {"window": 8, "max_answer_tokens": 8}
    assert config_of(rollout=short).window == 8, "which cuts nothing, so no edge is too wide for it"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": "dpo"}, "algorithm: input should be 'tppo', 'ppo' or 'grpo', not 'dpo'"),
        ({"windows": 3}, "there is no key windows"),
        ({"rollout": {"widow": 3}}, r"there is no key rollout\.widow"),
        ({"rollout": {"window": 0}}, r"rollout\.window: .*greater than or equal to 1, not 0"),
        ({"rollout": {"window": "many"}}, r"rollout\.window: .*valid integer.*, not 'many'"),
        ({"data": {}}, r"data\.train is missing"),
        ({"reward": {"function": "exact", "seconds": float("nan")}}, r"reward\.seconds: "),
        ({"loss": {"clip_high": 9.0}}, "dual_clip must be above 1 \\+ clip_high = 10, but is 10"),
        ({"algorithm": "grpo", "rollout": {"answers": 1}}, r"rollout\.answers must be 2 or more"),
        ({"algorithm": "grpo", "value_model": "x"}, "leave value_model out"),
        ({"rollout": {"window": 8}}, r"advantage\.edge must be below the window of 8 tokens"),
    ],
)
def test_a_mistake_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**values)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"model is missing; .*run is missing"):
        TrainConfig.of({})


def told_by(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[TrainConfig, bool]:
    """What the command would train with."""
    told: list[tuple[TrainConfig, bool]] = []
    monkeypatch.setattr(train, "run_training", lambda *given: told.append(given))
    app = Typer()
    app.command()(train.train)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return told[0]


FILE = """
model: some/model
data: {train: problems.jsonl, prompt-key: question}
reward: {function: 'regex:#### (\\S+)'}
rollout:
  window: 512
  engine: {attn-gpus: 2}
optimiser: {policy-rate: 1e-5}
run: {output: runs/one, tensorboard: true}
"""


def test_a_file_and_flags_which_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    config, resume = told_by(monkeypatch, str(path))
    assert not resume
    assert config.data.prompt_key == "question"
    assert config.rollout.engine == {"attn_gpus": 2}
    assert (config.optimiser.policy_rate, config.run.tensorboard) == (1e-5, True)
    flags = ["--algorithm", "ppo", "--rollout.window", "64", "--no-run.tensorboard", "--resume"]
    engine = ["--rollout.engine", '{"ffn-gpus": 3}', "--loss.clip-high", "0.3"]
    config, resume = told_by(monkeypatch, str(path), *flags, *engine)
    assert resume
    assert (config.algorithm, config.rollout.window, config.run.tensorboard) == ("ppo", 64, False)
    assert (config.rollout.engine, config.loss.clip_high) == ({"ffn_gpus": 3}, 0.3)
    assert config.data.prompt_key == "question"


def test_flags_alone_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--model m", "--data.train d.jsonl", "--reward.function exact", "--run.output o")
    config, _ = told_by(monkeypatch, *" ".join(flags).split())
    assert config == TrainConfig.of(
        {
            "model": "m",
            "data": {"train": "d.jsonl"},
            "reward": {"function": "exact"},
            "run": {"output": "o"},
        }
    )


def test_transformers_that_isnt_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers", "transformers.utils"):  # which may be there from other tests
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"needs transformers: pip install 'megainfer\[rl\]'"):
        train.run_training(config_of(), resume=False)


def test_reasons_that_all_differ_are_a_few_lines() -> None:
    reasons = {f"it raised ValueError: no {i}": 2 for i in range(9)}
    metrics = {"answers/finished": 18.0, "answers/unfinished": 0.0}
    text = StringIO()
    StepLines(Console(file=text), 3).show(1, StepReport(metrics, reasons))
    assert text.getvalue().splitlines()[1:] == [
        *(f"  2 answers without a reward: it raised ValueError: no {i}" for i in range(3)),
        "  12 answers without a reward: 6 other reasons",
    ]


def test_every_key_has_a_flag_and_its_help() -> None:
    flags = list(flags_of(TrainConfig))
    assert len({flag.name for flag in flags}) == len(flags) > 40
    assert all(flag.field.description for flag in flags)
    values = config_of().model_dump(mode="json")
    keys = {
        (name, *([inner] if inner else []))
        for name, section in values.items()
        for inner in (section if isinstance(section, dict) else [""])
    }
    assert {flag.path for flag in flags} == keys


def test_a_section_that_is_none_gives_way_to_a_flag() -> None:
    flags = {flag.parameter: flag for flag in flags_of(TrainConfig)}
    assert merged({"data": None}, flags, {"data__train": "x"}) == {"data": {"train": "x"}}
