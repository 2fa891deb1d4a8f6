"""A whole run: opened, stepped through, saved, closed."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megainfer.errors import ConfigError
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.data.prompts import Prompts
from megainfer.rl.ranks.ranks import ALONE, Ranks
from megainfer.rl.rewards.choice import open_reward
from megainfer.rl.rewards.score import Reward
from megainfer.rl.rollout.engine import RolloutEngine
from megainfer.rl.run.evaluation import Evaluation
from megainfer.rl.run.interrupts import Interrupts
from megainfer.rl.run.metrics_file import MetricsFile
from megainfer.rl.run.preparation import (
    Say,
    checkpoints_of,
    open_learner,
    open_prompts,
    open_state,
    open_tokenizer,
    starting_point,
)
from megainfer.rl.run.scoring import Scorer
from megainfer.rl.run.trainer import StepReport, Trainer
from megainfer.rl.training.learner import Learner
from megainfer.text.tokenizer import Tokenizer

OpenEngine = Callable[[Path], RolloutEngine]
"""From a folder with the policy to who draws from it."""
Show = Callable[[int, StepReport], None]
"""A step that was taken, by its number from 1."""


class Run:
    """Goes through the steps of `config`, from its newest checkpoint where `resume` says so.

    open_engine: starts the engine; show: is told of every step; say: of what happens beside; ranks:
    who trains, of whom this is the first, and the others `follow`.
    Raises ConfigError and ModelError before a step is taken. Close it.
    """

    def __init__(
        self,
        config: TrainConfig,
        resume: bool,
        open_engine: OpenEngine,
        show: Show,
        say: Say,
        ranks: Ranks = ALONE,
    ) -> None:
        self._config = config
        self._show = show
        self._say = say
        checkpoint = starting_point(config, resume)
        self._checkpoints = checkpoints_of(config)
        config.run.output.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            opened.enter_context(_alone_in(config.run.output))
            tokenizer = open_tokenizer(config, checkpoint, say)
            prompts = open_prompts(config, config.data.train, tokenizer, say)
            state = open_state(config, checkpoint, prompts)
            reward = open_reward(
                config.reward.function, config.reward.workers, config.reward.seconds
            )
            opened.callback(reward.close)
            self._evaluation = self._open_evaluation(reward, tokenizer)
            self._learner = open_learner(config, checkpoint, ranks, say)
            opened.callback(self._learner.close)
            scratch = opened.enter_context(_scratch(config.run.output))
            self._engine = open_engine(_served(self._learner, scratch))
            opened.callback(self._engine.close)
            self._metrics = MetricsFile(config.run.output, state.step, config.run.tensorboard)
            opened.callback(self._metrics.close)
            self._trainer = Trainer(
                config,
                Scorer(reward, prompts, tokenizer),
                self._engine,
                self._learner,
                state,
                scratch,
            )
            opened.callback(self._trainer.close)
            self._opened = opened.pop_all()

    def steps(self) -> None:
        """All that are left. An interrupt ends it after the step, which is saved."""
        own = self._config.run
        saved = step = self._trainer.state.step
        if step >= own.steps:
            self._say(f"all {own.steps} steps are done; a larger --run.steps goes on")
        with Interrupts() as interrupts:
            while step < own.steps and not interrupts.heard:
                report = self._trainer.step()
                step = self._trainer.state.step
                if self._evaluation is not None and step % own.evaluate_every == 0:
                    report.metrics.update(self._evaluation.metrics(self._engine))
                self._metrics.write(step, report.metrics, report.texts)
                self._show(step, report)
                if step % own.save_every == 0:
                    saved = self._save()
        if saved != step:
            self._save()
        if interrupts.heard:
            self._say(f"interrupted after step {step} of {own.steps}; --resume goes on")

    def close(self) -> None:
        """End what was started; it can be called twice."""
        self._opened.close()

    def _save(self) -> int:
        state = self._trainer.state

        def write(folder: Path) -> None:
            self._learner.save(folder)
            state.save(folder)

        path = self._checkpoints.save(state.step, write)
        self._say(f"saved {path}")
        return state.step

    def _open_evaluation(self, reward: Reward, tokenizer: Tokenizer) -> Evaluation | None:
        config = self._config
        if config.data.evaluation is None:
            return None
        prompts: Prompts = open_prompts(config, config.data.evaluation, tokenizer, self._say)
        return Evaluation(
            prompts,
            Scorer(reward, prompts, tokenizer),
            config.run.evaluation_answers,
            config.rollout.max_answer_tokens,
            config.reward.correct,
            config.run.seed,
        )


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Raises ConfigError where another run writes there."""
    folder = os.open(output, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another run writes to {output}; end it, or choose another --run.output"
            ) from None
        yield
    finally:
        os.close(folder)


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; one that a killed run left is cleared."""
    folder = output / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _served(learner: Learner, scratch: Path) -> Path:
    """The policy as it is published later, so that names and files are the same from the start."""
    folder = scratch / "served"
    learner.save_policy(folder)
    return folder
