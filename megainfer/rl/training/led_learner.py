"""A learner whose models are shared out among ranks."""

from collections.abc import Sequence
from pathlib import Path

from megainfer.errors import NodeDied
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.ranks.commands import (
    Command,
    End,
    Learn,
    Open,
    Predict,
    Save,
    decoded,
    encoded,
)
from megainfer.rl.ranks.ranks import Ranks
from megainfer.rl.samples.rows import PolicyRow, Row, ValueRow
from megainfer.rl.training.learner import Learner
from megainfer.rl.training.metrics import Metrics


class LeadingLearner(Learner):
    """The first rank's: whatever it does, the others are told to do too. Close it."""

    _closed = False

    def predict(self, rows: Sequence[Row]) -> list[list[float]]:
        self._tell(Predict(list(rows)))
        return super().predict(rows)

    def learn(self, policy: Sequence[PolicyRow], value: Sequence[ValueRow]) -> Metrics:
        self._tell(Learn(list(policy), list(value)))
        return super().learn(policy, value)

    def save(self, folder: Path) -> None:
        self._tell(Save(policy_alone=False))
        super().save(folder)

    def save_policy(self, folder: Path) -> None:
        self._tell(Save(policy_alone=True))
        super().save_policy(folder)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._tell(End())

    def _tell(self, command: Command) -> None:
        self._ranks.tell(encoded(command))


def led_learner(config: TrainConfig, opened: Open, ranks: Ranks) -> Learner:
    """On one rank, or on the first, which tells the others. Raises ModelError, ConfigError,
    CheckpointError."""
    if ranks.world == 1:
        return _learner(Learner, config, opened, ranks)
    ranks.tell(encoded(opened))
    return _learner(LeadingLearner, config, opened, ranks)


def follow(config: TrainConfig, ranks: Ranks) -> None:
    """What every rank but the first does, until that one ends. Raises NodeDied where it does
    without a word, and what a learner does."""
    learner: Learner | None = None
    while not isinstance(command := _heard(ranks), End):
        if isinstance(command, Open):
            learner = _learner(Learner, config, command, ranks)
            continue
        assert learner is not None, "the first word opens a learner"
        match command:
            case Predict():
                learner.predict(command.rows)
            case Learn():
                learner.learn(command.policy, command.value)
            case Save(policy_alone=True):
                learner.save_policy(Path())
            case Save():
                learner.save(Path())


def _heard(ranks: Ranks) -> Command:
    try:
        return decoded(ranks.hear())
    except RuntimeError as error:
        raise NodeDied("the first rank has ended: see what it said") from error


def _learner(kind: type[Learner], config: TrainConfig, opened: Open, ranks: Ranks) -> Learner:
    if opened.resumed:
        return kind.resumed(config, Path(opened.folder), ranks)
    value = None if opened.value is None else Path(opened.value)
    return kind(config, Path(opened.folder), value, ranks)
