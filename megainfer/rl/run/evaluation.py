"""How many held-out problems the policy solves."""

from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.rl.data.prompts import Prompts
from megainfer.rl.rollout.engine import Context, RolloutEngine
from megainfer.rl.rollout.seeds import seed_of
from megainfer.rl.run.scoring import Answer, Scorer
from megainfer.rl.training.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`answers` whole answers to each problem, drawn at temperature 1, and one greedy one.

    The seeds are the same at every evaluation, so that a change is the policy's.
    """

    prompts: Prompts
    scorer: Scorer
    answers: int
    most: int
    correct: float
    seed: int

    def metrics(self, engine: RolloutEngine) -> Metrics:
        """pass@1, the mean share of correct answers; what can't be scored counts as wrong."""
        sampled = self._ask(engine, self.answers, greedy=False)
        best = self._ask(engine, 1, greedy=True)
        return {**_named("evaluation/", sampled), "evaluation/greedy": best["pass@1"]}

    def _ask(self, engine: RolloutEngine, times: int, greedy: bool) -> Metrics:
        places = [place for place in range(len(self.prompts)) for _ in range(times)]
        contexts = [
            Context(
                self.prompts.token_ids[place],
                self.most,
                seed_of(self.seed, "evaluation", number),
            )
            for number, place in enumerate(places)
        ]
        drawn = engine.draw(contexts, greedy)
        answers = [Answer(p, d.token_ids) for p, d in zip(places, drawn, strict=True)]
        rewards = [score.reward for score in self.scorer.score(answers)]
        return {
            "pass@1": _share([r is not None and r >= self.correct for r in rewards]),
            "unscored": _share([r is None for r in rewards]),
            "tokens": sum(len(d.token_ids) for d in drawn) / len(drawn),
        }


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _named(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}{name}": value for name, value in metrics.items()}
