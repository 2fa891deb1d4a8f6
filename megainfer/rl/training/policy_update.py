"""A step's updates of the policy."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from megainfer.rl.losses.policy import clipped_share, policy_loss
from megainfer.rl.samples.rows import PolicyRow
from megainfer.rl.training.metrics import Metrics, Seen, flat, mean_of
from megainfer.rl.training.models import Policy
from megainfer.rl.training.optimiser import Optimiser
from megainfer.rl.training.passes import Passes


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """low, high, dual: of `policy_loss`. language: weight of the language-model loss, the mean
    -log p of correct answers' tokens (T-PPO's, from VAPO: arXiv 2504.05118)."""

    low: float = 0.2
    high: float = 0.28
    dual: float = 10.0
    language: float = 0.1


class PolicyUpdate:
    """Trains the policy on the rows of a step, each once."""

    def __init__(
        self, policy: Policy, optimiser: Optimiser, objective: PolicyObjective, passes: Passes
    ) -> None:
        self._policy = policy
        self._optimiser = optimiser
        self._objective = objective
        self._passes = passes

    def __call__(self, rows: Sequence[PolicyRow]) -> Metrics:
        """Of each metric the mean over updates. `mismatch` is the mean |log p - old log p| before
        the first update: how far the rollout engine is from the policy."""
        found = [self._update(batch) for batch in self._passes.split(rows, self._optimiser.updates)]
        metrics = mean_of(found)
        if found:
            metrics["mismatch"] = found[0]["log_ratio"]
        return metrics

    def _update(self, rows: Sequence[PolicyRow]) -> Metrics:
        tokens = sum(len(row.span) for row in rows)
        correct = sum(len(row.span) for row in rows if row.correct)
        seen = Seen()
        for chosen, seen.weight in self._passes.passes(rows):
            part = [rows[i] for i in chosen]
            with self._passes.computing(self._policy.model.device):
                logprobs = self._policy.logprobs(part)
            loss = self.loss(part, logprobs, tokens, correct, seen) * seen.weight
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
        return {**seen.metrics(self._passes.ranks), "gradient_norm": self._optimiser.step()}

    def loss(
        self, rows: Sequence[PolicyRow], logprobs: Tensor, tokens: int, correct: int, seen: Seen
    ) -> Tensor:
        """These rows' share of an update's loss: means are over all its `tokens`, and over all
        tokens of its `correct` answers, however it is cut into passes."""
        own, device = self._objective, logprobs.device
        old = flat((row.old_logprobs for row in rows), device)
        advantages = flat((row.advantages for row in rows), device)
        each = policy_loss(logprobs, old, advantages, low=own.low, high=own.high, dual=own.dual)
        loss = each.sum() / tokens
        if correct and own.language:
            right = flat(([float(row.correct)] * len(row.span) for row in rows), device)
            loss = loss - own.language * (logprobs * right).sum() / correct
        difference = (logprobs - old).detach()
        seen.add(
            len(old),
            loss,
            log_ratio=difference.abs().mean(),
            clipped=clipped_share(difference.exp(), advantages, own.low, own.high),
        )
        return loss
