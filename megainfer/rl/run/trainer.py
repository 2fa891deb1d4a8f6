"""A step of training: who is worked on, what they are worth, what is learnt of it."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.rollout.engine import RolloutEngine
from megainfer.rl.run.groups import Groups
from megainfer.rl.run.rollouts import Rollouts
from megainfer.rl.run.scoring import Answer, Scorer, why_skipped
from megainfer.rl.run.scoring_aside import Scores, ScoringAside
from megainfer.rl.run.state import RunState
from megainfer.rl.run.step_clock import StepClock
from megainfer.rl.samples.batch import (
    Estimation,
    latest_span,
    rows_by_group,
    rows_by_value,
    value_rows,
)
from megainfer.rl.samples.pool import Pool
from megainfer.rl.samples.problem_order import ProblemOrder
from megainfer.rl.samples.rows import Row
from megainfer.rl.samples.sample import Sample
from megainfer.rl.training.learner import Learner
from megainfer.rl.training.metrics import Metrics


@dataclass(frozen=True, slots=True)
class StepReport:
    """metrics: a step's numbers by name. skipped: how many answers got no reward, by the reason.
    texts: some of the answers that ended."""

    metrics: Metrics
    skipped: dict[str, int] = field(default_factory=dict)
    texts: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Takes one step after another; between two, `state` and `learner` are all there is to keep.
    Close it.

    scorer: has the prompts too. scratch: a folder in which new weights are handed to the engine.
    """

    def __init__(
        self,
        config: TrainConfig,
        scorer: Scorer,
        engine: RolloutEngine,
        learner: Learner,
        state: RunState,
        scratch: Path,
    ) -> None:
        self._config = config
        self._prompts = scorer.prompts
        self._scorer = scorer
        self._aside = ScoringAside(scorer)
        self._engine = engine
        self._learner = learner
        self._state = state
        self._scratch = scratch
        rollout = config.rollout
        self._pool = Pool.of(rollout.pool, state.running, state.waiting)
        self._order = ProblemOrder(len(scorer.prompts), config.run.seed, state.drawn)
        self._rollouts = Rollouts(
            engine,
            config.window,
            rollout.max_answer_tokens,
            learner.policy.vocab_size,
            config.run.seed,
            rollout.stale_keys,
        )
        own = config.advantage
        self._how = Estimation(
            window=config.window,
            edge=own.edge,
            gamma=own.gamma,
            alpha=own.lambda_alpha,
            least_lambda=own.lambda_least,
            clamp=own.clamp,
            correct=config.reward.correct,
        )

    @property
    def state(self) -> RunState:
        """Where the run is, between two steps."""
        state = self._state
        state.drawn = self._order.drawn
        state.running, state.waiting = list(self._pool.running), list(self._pool.waiting)
        return state

    def step(self) -> StepReport:
        """One step of the algorithm. Where it raises, `state` is amid a step: not to be saved."""
        clock = StepClock()
        samples = self._pool.fill(self._begin_problem)
        found = self._extend(samples, clock)
        finished = [sample for sample in samples if sample.finished]
        answers = [Answer(s.problem, s.response_ids) for s in finished]
        scores = [found[sample.number] for sample in finished]
        rewards = {
            sample.number: score.reward
            for sample, score in zip(finished, scores, strict=True)
            if score.reward is not None
        }
        with clock.measures("update"):
            metrics = self._learn(samples, rewards)
        for sample in samples:
            sample.routing = None  # large, and other weights choose anew
        with clock.measures("weights"):
            self._publish("policy/loss" in metrics)
        self._state.step += 1
        self._pool.release()
        metrics |= _of_answers(samples, rewards, self._how.correct) | clock.metrics()
        metrics["epoch"] = self._order.epoch
        texts = self._texts(answers, [rewards.get(s.number) for s in finished])
        return StepReport(metrics, why_skipped(scores), texts)

    def close(self) -> None:
        """It can be called twice."""
        self._aside.close()

    def _begin_problem(self) -> list[Sample]:
        """All answers to the next problem."""
        state, problem = self._state, self._order.draw()
        first, group = state.samples, state.groups
        state.samples += self._config.rollout.answers
        state.groups += 1
        prompt = self._prompts.token_ids[problem]
        return [Sample(number, group, problem, prompt) for number in range(first, state.samples)]

    def _extend(self, samples: Sequence[Sample], clock: StepClock) -> Scores:
        """A window for each, and the scores of those that are finished then. While others are
        drawn, the value model reads those that ended, and answers are scored."""
        own = self._config.compute
        most = [len(s.token_ids) + self._rollouts.room(s) for s in samples]
        groups = Groups(most, own.pass_tokens)
        begun = latest = perf_counter()
        windows = self._rollouts.extend(samples, self._state.version)
        with self._aside.begun() as scoring, closing(windows):
            for place, latest in windows:  # noqa: B007  # when the last one ended
                if (sample := samples[place]).finished:
                    scoring.add(sample.number, Answer(sample.problem, sample.response_ids))
                with clock.measures("values"):
                    self._predict([samples[i] for i in groups.ended(place)])
            clock.add("rollout", latest - begun)
            with clock.measures("reward"):
                return scoring.take()

    def _predict(self, samples: Sequence[Sample]) -> None:
        """What the value model says of the new tokens, before it or the policy changes."""
        if not (samples and self._config.has_value_model):
            return
        rows = [Row(sample.token_ids, latest_span(sample)) for sample in samples]
        for sample, values in zip(samples, self._learner.predict(rows), strict=True):
            sample.value(values)

    def _learn(self, samples: Sequence[Sample], rewards: dict[int, float]) -> Metrics:
        if not self._config.has_value_model:
            return self._learner.learn(rows_by_group(samples, rewards, self._how), [])
        value_alone = self._state.step < self._config.optimiser.value_first
        policy = [] if value_alone else rows_by_value(samples, rewards, self._how)
        return self._learner.learn(policy, value_rows(samples, rewards, self._how.gamma))

    def _publish(self, changed: bool) -> None:
        """The engine draws the next step's windows by the new policy."""
        if not changed:
            return
        with TemporaryDirectory(dir=self._scratch, prefix="weights-") as folder:
            self._learner.save_policy(Path(folder))
            self._engine.update_weights(Path(folder))
        self._state.version += 1

    def _texts(
        self, answers: Sequence[Answer], rewards: Sequence[float | None]
    ) -> list[dict[str, Any]]:
        """The first few that ended, for people to read."""
        chosen = list(zip(answers, rewards, strict=True))[: self._config.run.texts]
        return [
            {
                "prompt": self._prompts.problems[answer.problem].text,
                "response": self._scorer.text(answer),
                "answer": self._prompts.problems[answer.problem].answer,
                "reward": reward,
            }
            for answer, reward in chosen
        ]


def _of_answers(samples: Sequence[Sample], rewards: dict[int, float], correct: float) -> Metrics:
    """Counts and means over a step's answers; means over none are left out."""
    finished = [sample for sample in samples if sample.finished]
    metrics = {
        "answers/finished": float(len(finished)),
        "answers/unfinished": float(len(samples) - len(finished)),
        "answers/unscored": float(len(finished) - len(rewards)),
        "rollout/tokens": float(sum(len(s.latest.token_ids) for s in samples)),
        "rollout/context_tokens": float(
            sum(len(s.token_ids) - len(s.latest.token_ids) - s.latest.stale for s in samples)
        ),
        "rollout/stale_tokens": float(sum(s.latest.stale for s in samples)),
        "rollout/longest": float(max(len(s.latest.token_ids) for s in samples)),
    }
    if rewards:
        right = sum(reward >= correct for reward in rewards.values())
        metrics["reward/mean"] = sum(rewards.values()) / len(rewards)
        metrics["reward/correct"] = right / len(rewards)
    if finished:
        cut = sum(sample.finish == "length" for sample in finished)
        metrics["answers/tokens"] = sum(s.length for s in finished) / len(finished)
        metrics["answers/at_limit"] = cut / len(finished)
    return metrics
