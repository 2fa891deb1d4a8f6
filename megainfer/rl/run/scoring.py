"""Rewards of finished answers, and what is counted of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.rl.data.prompts import Prompts
from megainfer.rl.rewards.score import Attempt, Reward, Score
from megainfer.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. problem: its place in the prompts."""

    problem: int
    token_ids: Sequence[int]


class Scorer:
    """Turns token ids into texts and has them scored."""

    def __init__(self, reward: Reward, prompts: Prompts, tokenizer: Tokenizer) -> None:
        self._reward = reward
        self.prompts = prompts
        self._tokenizer = tokenizer

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """One an answer, in their order."""
        return self._reward.score([self._attempt(answer) for answer in answers])

    def text(self, answer: Answer) -> str:
        """Without special tokens, as rewards see it."""
        return self._tokenizer.decode(answer.token_ids)

    def _attempt(self, answer: Answer) -> Attempt:
        problem = self.prompts.problems[answer.problem]
        return Attempt(problem.text, self.text(answer), problem.answer)


def why_skipped(scores: Sequence[Score]) -> dict[str, int]:
    """How many answers have no reward, by the reason, the commonest first."""
    reasons = Counter(score.skipped for score in scores if score.skipped is not None)
    return dict(reasons.most_common())
