"""That each key of a configuration reaches what it is for, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.samples.rows import PolicyRow, ValueRow
from megainfer.rl.training.learner import Learner
from megainfer.rl.training.metrics import Metrics
from megainfer.rl.training.models import Policy, ValueModel
from megainfer.rl.training.optimiser import Optimiser, Schedule
from megainfer.rl.training.passes import Passes
from megainfer.rl.training.policy_update import PolicyObjective, PolicyUpdate
from megainfer.rl.training.value_update import ValueUpdate
from tests.support.rl_models import VOCABULARY, write_model

LOSS = {
    "clip_low": 0.15,
    "clip_high": 0.35,
    "dual_clip": 6.0,
    "value_clip_low": 0.3,
    "value_clip_high": 0.7,
    "language_weight": 0.2,
}
OPTIMISER = {
    "policy_rate": 3e-3,
    "value_rate": 5e-3,
    "warmup": 3,
    "weight_decay": 0.3,
    "beta1": 0.6,
    "beta2": 0.7,
    "max_norm": 0.05,
    "policy_updates": 2,
    "value_updates": 2,
}
OTHER = {
    "loss": {name: value * 1.1 for name, value in LOSS.items()},
    "optimiser": {
        name: value + 1 if isinstance(value, int) else value * 1.1
        for name, value in OPTIMISER.items()
    },
}
KEYS = [(section, key) for section, values in OTHER.items() for key in values]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), num_hidden_layers=1)


def token_ids(seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (8,), generator=random).tolist()


def policy_rows() -> list[PolicyRow]:
    """The model says about 1 / VOCABULARY of each token, that is, log p = -5.1: the ratios are
    about 2.5, 0.5 and 30, so that each bound holds for some."""
    chosen = [(-6.0, 1.0), (-4.4, -1.0), (-8.5, -1.0), (-5.1, 0.5)] * 2
    return [
        PolicyRow(token_ids(i), range(3, 8), [old] * 5, [advantage] * 5, correct=i % 2 == 0)
        for i, (old, advantage) in enumerate(chosen)
    ]


def value_rows() -> list[ValueRow]:
    """The model says 0 of everything: for some bounded from above, for some from below."""
    chosen = [(1.0, 0.0), (0.1, 2.0), (0.1, -2.0)] * 2
    return [
        ValueRow(token_ids(i), range(3, 8), [told] * 5, [old] * 5)
        for i, (told, old) in enumerate(chosen)
    ]


def learner_of(folder: Path, changed: tuple[str, str] | None = None) -> Learner:
    sections: dict[str, dict[str, Any]] = {"loss": dict(LOSS), "optimiser": dict(OPTIMISER)}
    if changed is not None:
        section, key = changed
        sections[section][key] = OTHER[section][key]
    values = {
        "model": "unused",
        "data": {"train": "unused"},
        "reward": {"function": "unused"},
        "run": {"output": "unused", "seed": 7},
        "compute": {"pass_tokens": 24},
        **sections,
    }
    return Learner(TrainConfig.of(values), folder, folder)


def learnt(learner: Learner) -> list[Metrics]:
    return [learner.learn(policy_rows(), value_rows()) for _ in range(2)]


@pytest.fixture(scope="module")
def usual(folder: Path) -> list[Metrics]:
    return learnt(learner_of(folder))


def test_a_learner_is_what_its_configuration_says(folder: Path, usual: list[Metrics]) -> None:
    policy, value = Policy.load(folder), ValueModel.load(folder)

    def schedule(rate: float) -> Schedule:
        return Schedule(rate, warmup=3, weight_decay=0.3, betas=(0.6, 0.7), max_norm=0.05)

    objective = PolicyObjective(low=0.15, high=0.35, dual=6.0, language=0.2)
    update = PolicyUpdate(
        policy,
        Optimiser(policy, schedule(3e-3)),
        objective,
        Passes(mini_batches=2, most_tokens=24, seed=7),
    )
    of_values = ValueUpdate(
        value,
        Optimiser(value, schedule(5e-3)),
        Passes(mini_batches=2, most_tokens=24, seed=7),
        low=0.3,
        high=0.7,
    )
    for found in usual:
        expected = {f"policy/{name}": v for name, v in update(policy_rows()).items()}
        expected |= {f"value/{name}": v for name, v in of_values(value_rows()).items()}
        assert found == expected


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_each_key_counts(folder: Path, usual: list[Metrics], key: tuple[str, str]) -> None:
    assert learnt(learner_of(folder, key)) != usual
