"""Steps of the trainer with an engine in this process."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest
import torch

from megainfer.errors import ProtocolError
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.data.files import read_problems
from megainfer.rl.data.prompts import encode_problems
from megainfer.rl.rewards.rules import Rule, RuleReward
from megainfer.rl.rewards.score import Attempt
from megainfer.rl.rollout.engine import Context, Drawn, Ended
from megainfer.rl.rollout.seeds import seed_of
from megainfer.rl.run.scoring import Scorer
from megainfer.rl.run.state import RunState
from megainfer.rl.run.trainer import StepReport, Trainer
from megainfer.rl.samples.batch import Estimation, rows_by_value
from megainfer.rl.samples.rows import Row
from megainfer.rl.training.learner import Learner
from megainfer.text.tokenizer import load_tokenizer
from tests.support.rl_engine import TransformersEngine
from tests.support.rl_models import write_problems, write_text_model

WHOLE = 8  # tokens of a whole answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("model"))


def config_of(tmp_path: Path, algorithm: str = "tppo", **sections: dict[str, Any]) -> TrainConfig:
    values: dict[str, Any] = {
        "algorithm": algorithm,
        "model": "unused",
        "data": {"train": tmp_path / "problems.jsonl"},
        "rollout": {"prompts": 3, "answers": 2, "max_answer_tokens": WHOLE, "window": 3},
        "reward": {"function": "unused"},
        "advantage": {"edge": 1},
        "optimiser": {"policy_rate": 1e-3, "value_rate": 1e-3, "value_first": 0},
        "run": {"output": tmp_path},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return TrainConfig.of(values)


def letters(attempt: Attempt) -> float:
    """A reward that any policy can raise: the share of characters that are letters."""
    text = attempt.response
    return sum(character.isalpha() for character in text) / max(len(text), 1)


class Setting:
    """A trainer with its parts at hand."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        tmp_path: Path,
        rule: Rule = letters,
        engine: Callable[[Path], TransformersEngine] = TransformersEngine,
    ) -> None:
        tokenizer = load_tokenizer(folder)
        assert tokenizer is not None
        problems = read_problems(write_problems(tmp_path / "problems.jsonl"))
        prompts = encode_problems(problems, tokenizer, most=16)
        self.engine = engine(folder)
        self.learner = Learner(config, folder, folder if config.has_value_model else None)
        self.trainer = Trainer(
            config,
            Scorer(RuleReward(rule), prompts, tokenizer),
            self.engine,
            self.learner,
            RunState(),
            tmp_path,
        )

    def steps(self, count: int) -> list[StepReport]:
        return [self.trainer.step() for _ in range(count)]

    def weights(self, folder: Path) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        self.learner.save(folder)
        return load_file(folder / "policy" / "model.safetensors")


def timeless(report: StepReport) -> dict[str, float]:
    """Without what the clock says."""
    return {n: v for n, v in report.metrics.items() if not n.startswith(("seconds/", "idle/"))}


def test_a_window_as_long_as_answers_is_ppo_to_the_bit(folder: Path, tmp_path: Path) -> None:
    weights, found = [], []
    for algorithm in ("ppo", "tppo"):
        own = tmp_path / algorithm
        own.mkdir()
        config = config_of(own, algorithm, rollout={"window": WHOLE})
        setting = Setting(config, folder, own)
        found.append([timeless(report) for report in setting.steps(3)])
        weights.append(setting.weights(own / "saved"))
    assert found[0] == found[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert found[0][0] != found[0][1]


def test_windows_add_up_to_the_answers_of_a_policy_that_stands_still(
    folder: Path, tmp_path: Path
) -> None:
    still = {"value_first": 99}
    whole = Setting(config_of(tmp_path, "ppo", optimiser=still), folder, tmp_path)
    whole.steps(2)
    cut = Setting(config_of(tmp_path, optimiser=still), folder, tmp_path)
    cut.steps(6)
    answers = {seed: tokens for seed, ((_, tokens),) in whole.engine.windows.items()}
    ended = set(range(len(answers))) - {s.number for s in cut.trainer.state.running}
    joined = [seed_of(0, "answer", number) for number in ended]
    assert len(joined) >= 6
    for seed in joined:
        assert [t for _, part in cut.engine.windows[seed] for t in part] == answers[seed]
    assert max(len(cut.engine.windows[seed]) for seed in joined) == 3


def test_each_window_is_drawn_by_the_policy_of_its_step(folder: Path, tmp_path: Path) -> None:
    setting = Setting(config_of(tmp_path), folder, tmp_path)
    reports = setting.steps(4)
    assert setting.engine.updates == setting.trainer.state.version == 4
    begun = setting.engine.windows.values()
    for parts in begun:
        versions = [version for version, _ in parts]
        assert versions == list(range(versions[0], versions[0] + len(parts))), "a window a step"
        assert all(len(tokens) == 3 for _, tokens in parts[:-1])
    assert any(len(parts) == 3 for parts in begun)
    assert all(report.metrics["policy/mismatch"] < 1e-5 for report in reports)
    for sample in setting.trainer.state.running:
        assert all(len(window.values) == len(window.token_ids) for window in sample.windows)


class Keeping(TransformersEngine):
    """Says that it has kept a token of each context that may be stale."""

    def draw_each(self, contexts: Sequence[Context]) -> Iterator[Ended]:
        """As the protocol says."""
        for ended in super().draw_each(contexts):
            stale = int(contexts[ended.place].stale_prefix)
            yield ended._replace(drawn=replace(ended.drawn, stale=stale))


@pytest.mark.parametrize("keeps", [False, True])
def test_answers_go_on_from_stale_keys_where_that_is_wanted(
    folder: Path, tmp_path: Path, keeps: bool
) -> None:
    config = config_of(tmp_path, rollout={"stale_keys": keeps})
    setting = Setting(config, folder, tmp_path, engine=Keeping)
    first, second = setting.steps(2)
    assert first.metrics["rollout/stale_tokens"] == 0
    going = first.metrics["answers/unfinished"]
    assert second.metrics["rollout/stale_tokens"] == (going if keeps else 0)
    assert going


def test_the_value_model_is_trained_alone_at_first(folder: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, optimiser={"value_first": 2}, rollout={"window": WHOLE})
    setting = Setting(config, folder, tmp_path)
    reports = setting.steps(3)
    assert ["policy/loss" in report.metrics for report in reports] == [False, False, True]
    assert all("value/loss" in report.metrics for report in reports)
    assert setting.engine.updates == 1
    assert setting.trainer.state.version == 1


@pytest.mark.parametrize("algorithm", ["tppo", "ppo", "grpo"])
def test_rewards_grow(folder: Path, tmp_path: Path, algorithm: str) -> None:
    config = config_of(
        tmp_path,
        algorithm,
        rollout={"prompts": 8, "answers": 4, "window": 4},
        optimiser={"policy_rate": 1e-2, "value_rate": 1e-2, "value_first": 0},
    )
    reports = Setting(config, folder, tmp_path).steps(24)
    rewards = [r.metrics["reward/mean"] for r in reports if "reward/mean" in r.metrics]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.15


def test_an_answer_without_a_reward_trains_nothing(folder: Path, tmp_path: Path) -> None:
    def unscored(attempt: Attempt) -> float:
        raise ValueError("no reward today")

    config = config_of(tmp_path, "ppo")
    setting = Setting(config, folder, tmp_path, unscored)
    before = setting.weights(tmp_path / "before")
    (report,) = setting.steps(1)
    after = setting.weights(tmp_path / "after")
    assert report.skipped == {"no reward today": 6}
    assert report.metrics["answers/unscored"] == 6
    assert setting.engine.updates == 0
    assert all(torch.equal(before[name], after[name]) for name in before)


class Wrong(TransformersEngine):
    """Gives a log-probability that none can be."""

    def draw(self, contexts: Sequence[Context], greedy: bool = False) -> list[Drawn]:
        first, *others = super().draw(contexts, greedy)
        return [Drawn(first.token_ids, [float("nan")] * len(first.token_ids)), *others]


def test_what_an_engine_does_wrong_is_an_error_and_that_answer_doesnt_grow(
    folder: Path, tmp_path: Path
) -> None:
    setting = Setting(config_of(tmp_path), folder, tmp_path, engine=Wrong)
    with pytest.raises(ProtocolError, match="log-probability nan"):
        setting.trainer.step()
    assert not setting.trainer.state.running[0].windows


class Waiting(TransformersEngine):
    """After the first has ended nothing more is drawn until it was scored and valued."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.scored, self.valued = Event(), Event()

    def draw_each(self, contexts: Sequence[Context]) -> Iterator[Ended]:
        first, *others = super().draw_each(contexts)
        yield first
        assert self.scored.wait(60), "it wasn't scored"
        assert self.valued.wait(60), "it wasn't valued"
        yield from others


def test_who_has_ended_is_scored_and_valued_while_others_are_drawn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, "ppo", compute={"pass_tokens": 1})
    setting = Setting(config, folder, tmp_path, lambda attempt: heard(attempt), engine=Waiting)
    engine = setting.engine
    assert isinstance(engine, Waiting)
    predict = Learner.predict

    def heard(attempt: Attempt) -> float:
        engine.scored.set()
        return letters(attempt)

    def watched(learner: Learner, rows: Sequence[Row]) -> list[list[float]]:
        engine.valued.set()
        return predict(learner, rows)

    monkeypatch.setattr(Learner, "predict", watched)
    (report,) = setting.steps(1)
    assert report.metrics["answers/finished"] == 6


class Shuffled(TransformersEngine):
    """In another order each time."""

    def draw_each(self, contexts: Sequence[Context]) -> Iterator[Ended]:
        each = list(super().draw_each(contexts))
        Random(self.updates + self.salt).shuffle(each)
        yield from each

    salt = 0


def test_who_ends_first_changes_no_bit(folder: Path, tmp_path: Path) -> None:
    found = []
    for salt in (0, 1):
        own = tmp_path / str(salt)
        own.mkdir()
        kind = type("Salted", (Shuffled,), {"salt": salt})
        setting = Setting(config_of(own), folder, own, engine=kind)
        metrics = [timeless(report) for report in setting.steps(4)]
        found.append((metrics, setting.weights(own / "saved")))
    (metrics, weights), (others, other) = found
    assert metrics == others
    assert all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize(("algorithm", "window"), [("tppo", 3), ("ppo", WHOLE)])
def test_advantages_are_estimated_as_the_configuration_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, window: int
) -> None:
    seen: list[Estimation] = []

    def watched(samples: Any, rewards: Any, how: Estimation) -> Any:
        seen.append(how)
        return rows_by_value(samples, rewards, how)

    monkeypatch.setattr("megainfer.rl.run.trainer.rows_by_value", watched)
    own = {"gamma": 0.9, "lambda_alpha": 0.3, "lambda_least": 0.6, "edge": 2, "clamp": 4.0}
    config = config_of(tmp_path, algorithm, advantage=own, reward={"correct": 0.5})
    Setting(config, folder, tmp_path).steps(1)
    assert seen == [
        Estimation(window, edge=2, gamma=0.9, alpha=0.3, least_lambda=0.6, clamp=4.0, correct=0.5)
    ]
